"""Every family: its config out and in again, packed rows, the decode loop, and a mesh."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import families, weights
from gad_jax.rollout import attention, ring
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.types import Segments
from tests.models import networks
from tests.models.networks import NETWORKS
from tests.models.test_decoder import packed_row
from tests.models.variants import logits
from tests.rollout.model import NO_END, PAD, PROMPTS, SAME, Model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_config_survives_the_way_out_and_in(name: str) -> None:
    from transformers import AutoConfig

    config = families.read(NETWORKS[name])
    written = json.loads(json.dumps(families.write(config)))
    assert families.read(written) == config
    # what transformers 5 takes it for, and writes in its own form
    theirs = AutoConfig.for_model(**written).to_dict()
    assert families.read(theirs) == config
    scores = dataclasses.replace(config, head="score")
    assert families.read(json.loads(json.dumps(families.write(scores)))) == scores


@pytest.mark.parametrize("name", NETWORKS)
def test_names_are_those_of_the_parameters(name: str) -> None:
    config = families.read(NETWORKS[name])
    for head in ("vocabulary", "score"):
        one = dataclasses.replace(config, head=head)
        leaves = jax.tree_util.tree_leaves_with_path(networks.random_params(one))
        found = {"/".join(key.key for key in path) for path, _ in leaves} - {"score/bias"}
        assert found == set(families.names(one))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_packed_row_equals_its_sequences_apart(name: str) -> None:
    config = families.read(NETWORKS[name])
    params = jax.tree.map(jnp.asarray, networks.random_params(config))
    row, sequences, places = packed_row()
    packed = logits(config, params, *row)[0]
    one = np.ones((1, 24), np.int32)
    for sequence, here in zip(sequences, places, strict=True):
        ids = np.pad(sequence, [(0, 0), (0, 24 - sequence.size)])
        segments = Segments(*(jnp.asarray(one) for _ in range(2)))
        alone = logits(config, params, jnp.asarray(ids), jnp.arange(24)[None], segments)[0]
        # one program's blocks of queries are another's
        np.testing.assert_allclose(packed[here], alone[: here.size], atol=2e-5)


# 30 + 24 positions fit into the first cache, 30 + 40 do not: the loop is compiled twice then.
SHORT, GROWING = (RolloutProgram(1, limit, NO_END, PAD) for limit in (24, 40))
EIGHT = ("gemma3", "smollm3-window", "phi4-mini")
"""Windows in some layers, layers without positions, wide prompts, partial rotation."""
WINDOWS = ("olmo3", "mistral")
"""Windows in some layers and in all; one program each."""


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in EIGHT])
def test_the_decode_loop_computes_what_the_whole_row_does(name: str, tmp_path: Path) -> None:
    directory = networks.write(tmp_path / name, NETWORKS[name])
    check_loop(directory, make_mesh(1, 1, 1, one_device()), GROWING if name in WINDOWS else SHORT)


@pytest.mark.parametrize("name", EIGHT)
def test_eight_devices_decode_and_compute_the_same(name: str, tmp_path: Path) -> None:
    check_loop(networks.write(tmp_path / name, NETWORKS[name]), make_mesh(1, 4, 2), GROWING)


def one_device() -> Any:
    return jax.devices()[:1]


def check_loop(directory: Path, mesh: jax.sharding.Mesh, program: RolloutProgram) -> None:
    """Compares log-probabilities of sampled tokens: the loop's with those of whole rows."""
    model = Model(directory, mesh)
    # prompts longer than the windows, and answers that push the prompt out of them
    rollout = model.answer(program)
    for row, tokens, logprobs in zip(
        model.forced(PROMPTS, rollout), rollout.tokens[:, 0], rollout.logprobs[:, 0], strict=True
    ):
        assert tokens.tolist() == row.argmax(-1).tolist()
        expected = jax.device_get(jax.nn.log_softmax(row))[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(logprobs, expected, atol=2 * SAME)


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    config = families.read(NETWORKS["olmo3"])
    assert ring.layer_positions(config, 64) == [6, 6, 6, 64]
    assert ring.layer_positions(config, 4) == [4, 4, 4, 4]
    with jax.set_mesh(make_mesh(1, 1, 1, one_device())):
        cache = ring.make(config, 2, 64)
    along = attention.ring_layout().keys.index("position")
    assert [keys.shape[along] for keys in cache.keys] == [6, 6, 6, 64]


LAYERS = [
    ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "no window is in use"),
    ("qwen2", {"layer_types": ["full_attention"]}, "a list of 2 entries"),
    ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
    ("llama", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types="),
    ("llama", {"sliding_window": 8}, "sliding_window=8 is unknown to family 'llama'"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
    ("smollm3", {"no_rope_layers": [1, 0, 1]}, "no_rope_layers=[1, 0, 1] must be a list of 2"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("qwen3", {"is_causal": False}, "is_causal=False"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers=[0] is not supported"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported"),
    ("qwen3_moe", {"num_local_experts": 16}, "num_experts=8 and num_local_experts=16 are two"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok=9, but there are 8"),
    ("qwen3_moe", {"num_experts": 0}, "num_experts=0 must be an integer greater than 0"),
    ("qwen3_moe", {"norm_topk_prob": 1}, "norm_topk_prob=1 must be true or false"),
    ("qwen3_moe", {"layer_types": ["sliding_attention"] * 2}, "layer_types="),
    ("qwen3_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size=64"),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv=8.0 is not supported"),
    ("olmoe", {"head_dim": 16}, "head_dim=16 is not supported"),
    ("mixtral", {"norm_topk_prob": True}, "norm_topk_prob=True is unknown to family 'mixtral'"),
    ("qwen3", {"num_experts": 8}, "num_experts=8 is unknown to family 'qwen3'"),
    ("llama", {"num_attention_heads": 3}, "do not divide each other"),
    ("llama", {"head_dim": 7}, "do not divide each other"),
    ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps=inf must be a finite number"),
    ("llama", {"rms_norm_eps": 0.0}, "rms_norm_eps=0.0 must be a finite number"),
    ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps=-1e-05 must be a finite number"),
    ("llama", {"rms_norm_eps": 1e-50}, "rms_norm_eps=1e-50 must be a finite number"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a finite number"),
    ("llama", {"rope_theta": 1e39}, "rope_theta=1e+39 must be a finite number"),
    ("llama", {"rope_theta": 10**400}, "must be a finite number"),
    ("granite", {"logits_scaling": 1e-50}, "logits_scaling=1e-50 must be a finite number"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
]


@pytest.mark.parametrize(("family", "fields", "message"), LAYERS)
def test_what_would_change_the_network_is_refused(
    family: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        families.read(networks.of_family(family, True) | fields)
    assert message in str(error.value)
    assert str(error.value).startswith("config.json: ")


def test_a_missing_tie_field_is_answered_by_the_weights(tmp_path: Path) -> None:
    for tied in (True, False):
        directory = networks.write(tmp_path / str(tied), networks.of_family("llama", tied))
        path = directory / "config.json"
        hf = json.loads(path.read_text())
        del hf["tie_word_embeddings"]
        path.write_text(json.dumps(hf))
        assert weights.load(directory)[0].tied is tied
