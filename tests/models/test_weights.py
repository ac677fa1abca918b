"""Weights survive the way out and in, whatever their dtype, files and mesh; damage is named."""

import dataclasses
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from gad_jax.base.errors import UserError
from gad_jax.distributed import sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder, weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.models.config import DecoderConfig, RopeScaling
from gad_jax.models.families import FAMILIES
from gad_jax.types import Params, Segments

VARIANTS = [(family, tied) for family in FAMILIES for tied in (True, False)]
END, PAD, START = 258, 256, 257
END_TOKENS = (END, PAD)
FILE = "model.safetensors"

# Two networks of float32 that hold equal weights: sums in another order, as in test_decoder.py.
PARITY = 1e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function: arguments of write_tiny → a directory, not to be changed."""

    @functools.cache
    def write(family: str = "llama", tied: bool = True, **options: Any) -> Path:
        directory = tmp_path_factory.mktemp(family)
        write_tiny(directory, family, tied, **options)
        return directory

    return write


@pytest.fixture(scope="module")
def tokenizer(tiny: Any) -> Any:
    return AutoTokenizer.from_pretrained(tiny())


def host(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {sharding.path_name(path): leaf for path, leaf in leaves}


def assert_same_bits(tree: Any, other: Any) -> None:
    one, two = host(tree), host(other)
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        assert leaf.dtype == two[name].dtype, name
        assert leaf.tobytes() == two[name].tobytes(), name


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def as_score(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    params = {name: part for name, part in params.items() if name != "head"}
    params["score"] = decoder.init_score(config, jax.random.key(1), 0.3)
    params["score"]["bias"] = jnp.asarray([0.375])
    return dataclasses.replace(config, head="score"), params


@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_what_is_saved_is_what_was_loaded(
    tiny: Any, tokenizer: Any, tmp_path: Path, family: str, tied: bool
) -> None:
    config, params = weights.load(tiny(family, tied))
    assert (config.family, config.tied, config.stored_dtype) == (family, tied, "float32")
    weights.save(tmp_path / "out", config, params, tokenizer, END_TOKENS)
    again, loaded = weights.load(tmp_path / "out")
    assert again == config
    assert_same_bits(loaded, params)
    # name by name, what write_tiny wrote
    ours, theirs = (load_file(path / FILE) for path in (tmp_path / "out", tiny(family, tied)))
    assert_same_bits(ours, theirs)


def test_a_kill_between_the_renames_loses_no_export(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = weights.load(tiny("qwen2", False))
    old, new = tmp_path / "out" / "student", jax.tree.map(lambda x: x + 1, params)
    weights.save(old, config, params, tokenizer, END_TOKENS)
    replace, renames = os.replace, []

    def killed(source: Path, target: Path) -> None:
        renames.append(target)
        if len(renames) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.save(old, config, new, tokenizer, END_TOKENS)
    monkeypatch.setattr(os, "replace", replace)
    # The old and the new are both whole; a next save that dies early puts the old one back.
    monkeypatch.setattr(weights, "_write_shards", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weights.save(old, config, new, tokenizer, END_TOKENS)
    assert_same_bits(weights.load(old)[1], params)
    monkeypatch.undo()
    weights.save(old, config, new, tokenizer, END_TOKENS)
    assert_same_bits(weights.load(old)[1], new)
    assert [path.name for path in old.parent.iterdir()] == ["student"]


def test_kernels_are_transposed_and_stacked(tiny: Any) -> None:
    _, params = weights.load(tiny("qwen2", False))
    tensors = load_file(tiny("qwen2", False) / FILE)
    down = params["layers"]["down"]["kernel"]
    assert down.shape == (2, 64, 32)
    np.testing.assert_array_equal(down[1], tensors["model.layers.1.mlp.down_proj.weight"].T)
    bias = params["layers"]["key"]["bias"]
    np.testing.assert_array_equal(bias[0], tensors["model.layers.0.self_attn.k_proj.bias"])
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["lm_head.weight"].T)
    np.testing.assert_array_equal(params["embedding"], tensors["model.embed_tokens.weight"])


def test_bfloat16_rounds_once(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    config, params = weights.load(tiny("qwen3", False))
    half = dataclasses.replace(config, stored_dtype="bfloat16")
    weights.save(tmp_path / "a", half, params, tokenizer, END_TOKENS)
    again, rounded = weights.load(tmp_path / "a")
    assert again == half
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert_same_bits(rounded, expected)
    weights.save(tmp_path / "b", again, rounded, tokenizer, END_TOKENS)
    assert (tmp_path / "b" / FILE).read_bytes() == (tmp_path / "a" / FILE).read_bytes()
    assert (tmp_path / "a" / FILE).stat().st_size < 0.6 * (
        tiny("qwen3", False) / FILE
    ).stat().st_size
    _, kept = weights.load(tmp_path / "a", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    assert_same_bits(jax.tree.map(lambda x: x.astype(jnp.float32), kept), rounded)


def test_files_are_bounded_and_indexed(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = weights.load(tiny("llama", False))
    monkeypatch.setattr(weights, "SHARD_BYTES", 70_000)  # an embedding has 65,536
    weights.save(tmp_path / "out", config, params, tokenizer, END_TOKENS)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{n:05}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "out" / f"{FILE}.index.json").read_text())
    found = {name: file for file in files for name in load_file(tmp_path / "out" / file)}
    assert index["weight_map"] == found
    sizes = [sum(x.nbytes for x in load_file(tmp_path / "out" / file).values()) for file in files]
    assert max(sizes) <= 70_000
    assert index["metadata"]["total_size"] == sum(sizes)
    again, loaded = weights.load(tmp_path / "out")
    assert again == config
    assert_same_bits(loaded, params)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False), ("qwen3", False)])
def test_a_mesh_holds_the_same_weights(tiny: Any, family: str, tied: bool) -> None:
    mesh = make_mesh(1, 4, 2)
    directory = tiny(family, tied, num_shards=2)
    _, alone = weights.load(directory)
    _, spread = weights.load(directory, mesh)
    assert_same_bits(spread, alone)
    for path, leaf in jax.tree_util.tree_leaves_with_path(spread):
        assert leaf.sharding.mesh == mesh
        assert leaf.sharding.spec == sharding.parameter_spec(sharding.path_name(path))
    up = spread["layers"]["up"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 32 // 4, 64 // 2)}


def test_a_mesh_saves_the_same_files(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    for name, mesh in (("one", None), ("eight", make_mesh(1, 4, 2))):
        config, params = weights.load(tiny("qwen2", False), mesh)
        weights.save(tmp_path / name, config, params, tokenizer, END_TOKENS)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "eight" / path.name).read_bytes(), path.name


def test_a_score_head_keeps_its_bias(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    config, params = as_score(*weights.load(tiny("qwen3", False)))
    weights.save(tmp_path / "out", config, params, tokenizer, END_TOKENS)
    hf = json.loads((tmp_path / "out/config.json").read_text())
    assert hf["architectures"] == ["Qwen3ForSequenceClassification"]
    assert (hf["num_labels"], hf["score_bias"]) == (1, 0.375)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / FILE)
    again, loaded = weights.load(tmp_path / "out")
    assert again == config
    assert_same_bits(loaded, params)


def test_the_saved_end_and_pad_tokens(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    config, params = weights.load(tiny())
    weights.save(tmp_path / "student", config, params, tokenizer, END_TOKENS)
    generation = json.loads((tmp_path / "student/generation_config.json").read_text())
    assert generation == {"bos_token_id": None, "eos_token_id": [END, PAD], "pad_token_id": PAD}
    hf = json.loads((tmp_path / "student/config.json").read_text())
    assert (hf["eos_token_id"], hf["pad_token_id"]) == (END, PAD)
    # A scorer must not take an end token for padding.
    weights.save(tmp_path / "judge", *as_score(config, params), tokenizer, END_TOKENS)
    hf = json.loads((tmp_path / "judge/config.json").read_text())
    assert hf["pad_token_id"] == START
    assert AutoTokenizer.from_pretrained(tmp_path / "judge").pad_token_id == START
    assert not (tmp_path / "judge/generation_config.json").exists()
    assert tokenizer.pad_token_id == PAD, "the caller's tokenizer was changed"
    # where padding ends nothing, it stays
    weights.save(tmp_path / "other", *as_score(config, params), tokenizer, (END,))
    assert json.loads((tmp_path / "other/config.json").read_text())["pad_token_id"] == PAD


def test_files_can_be_read_by_others(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    config, params = weights.load(tiny())
    weights.save(tmp_path / "out", config, params, tokenizer, END_TOKENS)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_save_cut_short_leaves_the_old_directory(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = weights.load(tiny())
    other, other_params = weights.load(tiny("qwen2", False))
    weights.save(tmp_path / "out", config, params, tokenizer, END_TOKENS)
    before = contents(tmp_path / "out")

    def fail(tensors: Any, path: Path, *rest: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights, "save_file", fail)
        for name in ("out", "new"):
            with pytest.raises(OSError, match="No space left"):
                weights.save(tmp_path / name, other, other_params, tokenizer, END_TOKENS)
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "new").exists()
    weights.save(tmp_path / "out", other, other_params, tokenizer, END_TOKENS)
    assert weights.load(tmp_path / "out")[0] == other
    assert b"half of it" not in contents(tmp_path / "out").values()


CONFIGS = [
    {},
    {"tied": True},
    {"head": "score"},
    {"stored_dtype": "bfloat16"},
    {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)},
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_survives_the_way_out_and_in(tiny: Any, family: str) -> None:
    plain = weights.read_config(tiny(family, False))
    for changes in CONFIGS:
        config = dataclasses.replace(plain, **changes)
        written = json.loads(json.dumps(FAMILIES[family].write(config)))
        assert FAMILIES[family].read(written) == config
        # what transformers itself takes it for, and writes in the newer form (rope_parameters)
        from transformers import AutoConfig

        fields = {k: v for k, v in written.items() if k != "model_type"}
        theirs = AutoConfig.for_model(family, **fields).to_dict()
        assert "rope_theta" in theirs["rope_parameters"]
        assert FAMILIES[family].read(theirs) == config


def test_both_forms_of_rope_settings_are_read(tiny: Any) -> None:
    hf = json.loads((tiny("llama", llama3_rope=True) / "config.json").read_text())
    config = FAMILIES["llama"].read(hf)
    assert config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)
    newer = {k: v for k, v in hf.items() if k not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = hf["rope_scaling"] | {"rope_theta": hf["rope_theta"]}
    assert FAMILIES["llama"].read(newer) == config
    older = hf | {"rope_scaling": {**hf["rope_scaling"], "type": "llama3"}}
    del older["rope_scaling"]["rope_type"]
    assert FAMILIES["llama"].read(older) == config


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Returns a directory of two files with an index, to be damaged."""
    write_tiny(tmp_path / "model", "qwen2", tied=False, num_shards=2)
    return tmp_path / "model"


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as error:
        weights.load(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


REFUSED = [
    ({"model_type": "mamba"}, "model_type='mamba'"),
    ({"model_type": None}, "model_type=None"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type='dynamic'"),
    ({"use_sliding_window": True}, "use_sliding_window=True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ({"model_type": "llama", "mlp_bias": True}, "mlp_bias=True"),
    ({"model_type": "llama", "attention_bias": True}, "attention_bias=true"),
    ({"model_type": "qwen3", "attention_bias": True}, "attention_bias=true"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_the_decoder_lacks_is_refused(
    broken: Path, fields: dict[str, Any], message: str
) -> None:
    edit_config(broken, **fields)
    assert f"config.json: {message} is not supported" in refusal(broken)


def test_a_refusal_says_what_there_is(broken: Path) -> None:
    edit_config(broken, rope_scaling={"rope_type": "yarn"})
    assert refusal(broken).endswith("this decoder has 'default' and 'llama3'")
    edit_config(broken, rope_scaling=None, hidden_act="gelu")
    assert refusal(broken).endswith("this decoder needs 'silu'")
    edit_config(broken, model_type="mamba")
    assert refusal(broken).endswith("llama, qwen2, qwen3; use a model of one of these")


def test_a_missing_field_is_named(broken: Path) -> None:
    path = broken / "config.json"
    hf = json.loads(path.read_text())
    del hf["hidden_size"]
    path.write_text(json.dumps(hf))
    assert "the field 'hidden_size' is missing" in refusal(broken)
    edit_config(broken, hidden_size=32, rope_scaling={"rope_type": "llama3"})
    assert "the field 'factor' is missing" in refusal(broken)


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00\xff"])
def test_a_config_that_is_no_object(broken: Path, text: str) -> None:
    (broken / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json cannot be read as a JSON object" in refusal(broken)


def test_a_missing_tensor_is_named(broken: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.bias"
    index = broken / f"{FILE}.index.json"
    file = broken / json.loads(index.read_text())["weight_map"][name]
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file)
    # in the index, not in the file that it names
    message = refusal(broken)
    assert file.name in message
    assert name in message
    content = json.loads(index.read_text())
    del content["weight_map"][name]
    index.write_text(json.dumps(content))
    assert f"the tensor {name} is missing from the weights" in refusal(broken)


def test_a_misshapen_tensor_is_named_with_both_shapes(broken: Path) -> None:
    edit_config(broken, intermediate_size=96)
    message = refusal(broken)
    shapes = r"mlp\.down_proj\.weight has shape \[32, 64\], but config\.json asks for \[32, 96\]"
    assert re.search(rf"\.safetensors: the tensor model\.layers\.0\.{shapes}", message), message


def test_fewer_layers_than_the_config_says(broken: Path) -> None:
    edit_config(broken, num_hidden_layers=3)
    assert re.search(r"the tensor model\.layers\.2\.\S+ is missing", refusal(broken))


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_truncated_file_is_named(broken: Path, kept: int) -> None:
    file = broken / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(broken)
    assert file.name in message
    assert "cannot be read as safetensors" in message
    assert "fetch the model again" in message


def test_without_weights_the_file_is_named(broken: Path) -> None:
    (broken / f"{FILE}.index.json").unlink()
    message = refusal(broken)
    assert f"{FILE} cannot be read" in message


@pytest.mark.parametrize("target", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 1])
def test_an_index_may_not_point_elsewhere(broken: Path, target: Any) -> None:
    index = broken / f"{FILE}.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = target
    index.write_text(json.dumps(content))
    assert f"model.norm.weight points outside the directory ({target!r});" in refusal(broken)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": []}'])
def test_an_index_that_is_none(broken: Path, text: str) -> None:
    (broken / f"{FILE}.index.json").write_text(text)
    assert f"{FILE}.index.json is not a safetensors index" in refusal(broken)


def padded(lengths: tuple[int, ...], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sequences that end with the end token, padded on the right, and where they are."""
    width = max(lengths)
    real = np.arange(width) < np.asarray(lengths)[:, None]
    ids = np.random.default_rng(0).integers(0, 256, real.shape)
    ids[np.arange(len(lengths)), np.asarray(lengths) - 1] = END
    return np.where(real, ids, pad), real


@pytest.mark.torch
@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_transformers_loads_what_is_saved(
    tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    family: str, tied: bool,
) -> None:  # fmt: skip
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config, params = weights.load(tiny(family, tied))
    params = jax.tree.map(lambda x: x + 0.01, params)  # trained: no longer what the file had
    if not tied:
        monkeypatch.setattr(weights, "SHARD_BYTES", 70_000)
    weights.save(tmp_path / "out", config, params, tokenizer, END_TOKENS)
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == [END, PAD]
    ids = np.random.default_rng(0).integers(0, 512, (1, 40))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    one = jnp.ones(ids.shape, jnp.int32)
    positions = jnp.arange(40)[None]
    ours = jax.jit(functools.partial(decoder.logits, config))(
        params, jnp.asarray(ids), positions, Segments(one, one)
    )
    np.testing.assert_allclose(ours, theirs, atol=PARITY, rtol=0)


@pytest.mark.torch
@pytest.mark.parametrize("pad_is_end", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_scores_as_the_discriminator_does(
    tiny: Any, tmp_path: Path, family: str, pad_is_end: bool
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tiny())
    if pad_is_end:  # as in SmolLM2: padding is the token that ends a turn
        tokenizer.pad_token = "<|im_end|>"
    config, params = as_score(*weights.load(tiny(family, False)))
    weights.save(tmp_path / "out", config, params, tokenizer, END_TOKENS)
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert model.config.num_labels == 1
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert reloaded.pad_token_id == model.config.pad_token_id == START
    lengths = (9, 23, 1, 16)
    ids, real = padded(lengths, reloaded.pad_token_id)
    one = jnp.asarray(real, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    scores = jax.jit(functools.partial(decoder.score, config))(
        params, jnp.asarray(ids), positions, Segments(one, one)
    )
    ours = np.asarray(scores)[np.arange(4), np.asarray(lengths) - 1] - 0.375
    with torch.no_grad():
        batch = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(real).long()).logits
        alone = [model(torch.from_numpy(ids[i : i + 1, :n])).logits for i, n in enumerate(lengths)]
    np.testing.assert_allclose(batch[:, 0], ours, atol=PARITY, rtol=0)
    np.testing.assert_allclose(np.concatenate(alone)[:, 0], ours, atol=PARITY, rtol=0)
    assert np.ptp(ours) > 1000 * PARITY
