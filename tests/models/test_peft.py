"""Adapters as PEFT directories: written, read back, refused, and loaded by PEFT itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from gad_jax.base.errors import UserError
from gad_jax.models import adapters, decoder, families, peft, weights
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.types import Params, Segments
from tests.models import networks
from tests.models.networks import NETWORKS

ATTENTION = ("query", "key", "value", "output")
ALL = (*ATTENTION, "gate", "up", "down")


def adapted(name: str, targets: tuple[str, ...] = ALL, rank: int = 3) -> DecoderConfig:
    plain = families.read(NETWORKS[name])
    return dataclasses.replace(plain, lora=Lora(rank, 6.0, targets))


def trained(config: DecoderConfig) -> Params:
    """Returns adapters, and a score head where there is one, that have learnt something."""
    random = np.random.default_rng(0)

    def one(leaf: Any) -> jax.Array:
        return jnp.asarray(0.2 * random.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(one, adapters.abstract(config)[1])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    config = adapted("qwen2-window")
    peft.write(tmp_path, config, peft.tensors(config, trained(config)), "org/base")
    return tmp_path


def change(directory: Path, **fields: Any) -> None:
    path = directory / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_what_is_written_is_read_back(written: Path) -> None:
    config = adapted("qwen2-window")
    found = peft.read(written, config)
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(trained(config)))
    stored = safetensors.load_file(written / peft.WEIGHTS)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    assert stored[name].shape == (3, 64)
    assert len(stored) == 2 * 2 * 7
    fields = json.loads((written / peft.CONFIG).read_text())
    assert fields["base_model_name_or_path"] == "org/base"
    assert (fields["r"], fields["lora_alpha"], fields["task_type"]) == (3, 6, "CAUSAL_LM")
    assert fields["target_modules"][:2] == ["q_proj", "k_proj"]


def test_a_discriminators_has_its_score_head(tmp_path: Path) -> None:
    config = dataclasses.replace(adapted("qwen3-moe", ATTENTION), head="score")
    peft.write(tmp_path, config, peft.tensors(config, trained(config)), "org/base")
    stored = safetensors.load_file(tmp_path / peft.WEIGHTS)
    assert stored["base_model.model.score.weight"].shape == (1, 32)
    fields = json.loads((tmp_path / peft.CONFIG).read_text())
    assert (fields["task_type"], fields["modules_to_save"]) == ("SEQ_CLS", ["score"])


def test_the_scale_of_rslora_is_read(written: Path) -> None:
    change(written, use_rslora=True)
    config = adapted("qwen2-window")
    with pytest.raises(UserError, match=r"give --lora\.alpha=10\.39"):
        peft.read(written, config)
    scaled = dataclasses.replace(config, lora=Lora(3, 6 * 3**0.5, ALL))
    assert peft.read(written, scaled)["layers"].keys() == set(ALL)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "use_dora=True, and only plain LoRA"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern="),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"some_new_kind": True}, "some_new_kind=True"),
        ({"r": 0}, "both must be positive"),
        ({"lora_alpha": "6"}, "both must be positive"),
        ({"r": 4}, r"give --lora\.rank=4"),
        ({"lora_alpha": 12}, r"give --lora\.alpha=12"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written: Path, fields: Any, said: str) -> None:
    change(written, **fields)
    with pytest.raises(UserError, match=said):
        peft.read(written, adapted("qwen2-window"))


def test_other_networks_and_damaged_files_are_refused(written: Path) -> None:
    with pytest.raises(UserError, match=r"give --lora\.targets=query,key,value,output,gate,up"):
        peft.read(written, adapted("qwen2-window", ATTENTION))
    deeper = dataclasses.replace(adapted("qwen2-window"), layers=3)
    with pytest.raises(UserError, match=r"lacks base_model.*layers\.2\.mlp.*unlike a LoRA"):
        peft.read(written, deeper)
    wider = dataclasses.replace(adapted("qwen2-window"), mlp_width=128)
    with pytest.raises(UserError, match=r"up_proj|gate_proj|down_proj"):
        peft.read(written, wider)
    with pytest.raises(UserError, match="keeps several projections in one tensor"):
        peft.read(written, adapted("phi3"))
    stored = safetensors.load_file(written / peft.WEIGHTS)
    name = next(iter(stored))
    safetensors.save_file(stored | {name: stored[name] * np.nan}, written / peft.WEIGHTS)
    with pytest.raises(UserError, match="not finite"):
        peft.read(written, adapted("qwen2-window"))
    safetensors.save_file(stored | {"base_model.more": stored[name]}, written / peft.WEIGHTS)
    with pytest.raises(UserError, match=r"has base_model\.more, unlike"):
        peft.read(written, adapted("qwen2-window"))
    (written / peft.WEIGHTS).write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        peft.read(written, adapted("qwen2-window"))
    (written / peft.CONFIG).write_text("[]")
    with pytest.raises(UserError, match="cannot be read as a JSON object"):
        peft.read(written, adapted("qwen2-window"))


TOKENS = np.random.default_rng(0).integers(0, 250, (1, 12))


def computed(compute: Any, config: DecoderConfig, params: Params) -> np.ndarray:
    rows = jnp.asarray(TOKENS), jnp.arange(12)[None]
    own = jnp.ones_like(rows[0])
    return np.asarray(compute(config, params, *rows, Segments(own, own)))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("name", "targets"),
    [("qwen2-window", ALL), ("gemma3", ALL), ("qwen3-moe", ATTENTION), ("llama-biases", ("up",))],
)
def test_peft_computes_the_same_logits_and_scores(
    tmp_path: Path, name: str, targets: tuple[str, ...]
) -> None:
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    base = networks.write(tmp_path / "base", NETWORKS[name])
    _, whole = weights.load(base)
    ids = torch.from_numpy(TOKENS).long()
    for head, load in {
        "vocabulary": AutoModelForCausalLM,
        "score": AutoModelForSequenceClassification,
    }.items():
        config: Any = dataclasses.replace(adapted(name, targets), head=head)
        ours, directory = trained(config), tmp_path / head
        directory.mkdir()
        peft.write(directory, config, peft.tensors(config, ours), str(base))
        more = {"num_labels": 1, "pad_token_id": 256} if head == "score" else {}
        model = load.from_pretrained(base, dtype=torch.float32, **more)
        model = theirs.PeftModel.from_pretrained(model, directory)
        with torch.no_grad():
            wanted = model(ids).logits.numpy()
        joined = adapters.join(whole, ours)
        if head == "vocabulary":
            found = computed(decoder.logits, config, joined)
            assert np.abs(found - computed(decoder.logits, config.merged, whole)).max() > 0.01
        else:
            found = computed(decoder.score, config, joined)[:, -1:] - ours["score"]["bias"]
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_what_peft_saves_is_read(tmp_path: Path) -> None:
    torch, theirs = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = networks.write(tmp_path / "base", NETWORKS["qwen2-window"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = theirs.LoraConfig(
        r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.1
    )
    model = theirs.get_peft_model(model, options).eval()
    model.save_pretrained(tmp_path / "adapter")
    config = adapted("qwen2-window")
    found = computed(
        decoder.logits,
        config,
        adapters.join(
            weights.load(base)[1],
            jax.tree.map(jnp.asarray, peft.read(tmp_path / "adapter", config)),
        ),
    )
    with torch.no_grad():
        wanted = model(torch.from_numpy(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
