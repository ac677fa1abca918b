"""Whole runs with adapters: what is saved, resuming, other devices, another base, exports."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load

from gad_jax.base import exits
from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.export import __main__ as export
from gad_jax.models import adapters, decoder, source, weights
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import architectures, bases, digest, finishing, loading, setup, state
from gad_jax.types import Segments
from tests.training.runs import rows, run, settings

pytest_plugins = ["tests.hub_fixtures"]

FLAGS = (
    *("--lora.rank=4", "--stage=gad", "--gad.steps=2", "--checkpoint.every=1", "--data.heldout="),
    *("--mesh.fsdp=1", "--mesh.replica=8"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model in a directory of its own, whose weights a test may exchange."""
    directory = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(source.resolve("random-tiny"), directory)
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    directory = tmp_path_factory.mktemp("whole")
    config = settings(directory, *FLAGS, f"--student.path={model}")
    setup.claim(config)
    return directory, run(config)


def test_both_networks_share_a_base_and_a_checkpoint_holds_adapters_alone(whole):
    directory, trainer = whole
    assert trainer.frozen.discriminator is None
    trained = {name.split("/")[-1] for name in digest.named_leaves(trainer.state.generator)}
    assert trained == {"lora_a", "lora_b"}
    assert set(trainer.state.discriminator) == {"layers", "score"}
    assert set(trainer.state.reference) == {"layers"}
    record = json.loads((directory / "checkpoints" / "2" / "meta" / "record.json").read_text())
    trained_parts = ("generator", "discriminator", "reference")
    saved = {name.split("/")[-1] for name in record["layout"] if name.startswith(trained_parts)}
    assert saved == {"lora_a", "lora_b", "kernel", "bias", "count"}  # of the score head, of AdamW
    assert not any("embedding" in name or "norm" in name for name in record["layout"])
    assert not any("/query/kernel" in name for name in record["layout"])
    first, last = rows(directory)
    assert last["logprobs/gap"] < 1e-5  # decoding merges what the step keeps apart
    assert first["kl/reference"] == pytest.approx(0, abs=1e-9)
    assert first["generator/gradient_norm"] > 0
    assert last["kl/reference"] > 0


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole, model, tmp_path):
    directory, uninterrupted = whole
    config = settings(tmp_path, *FLAGS, f"--student.path={model}")
    assert not run(config, 1).finished
    resumed = run(config)
    with jax.set_mesh(resumed.mesh):
        assert digest.digests(resumed.state) == digest.digests(uninterrupted.state)
    assert rows(tmp_path) == rows(directory)


def test_a_run_resumes_on_other_devices_but_not_on_another_base(whole, model, tmp_path):
    directory, uninterrupted = whole
    config = settings(tmp_path, *FLAGS, f"--student.path={model}")
    assert not run(config, 1).finished
    weights_file = model / "model.safetensors"
    before = weights_file.read_bytes()
    try:
        weights_file.write_bytes(before[:-4] + bytes(4))
        with pytest.raises(UserError, match=r"has adapters of another base than this --student"):
            run(config)
        with pytest.raises(UserError, match=r"has adapters of another base"):
            loading.load_from_run(directory, "discriminator", make_mesh())
    finally:
        weights_file.write_bytes(before)
    mesh = dataclasses.replace(config.mesh, replica=2, fsdp=2, tensor=2)
    resumed = run(dataclasses.replace(config, mesh=mesh))
    assert resumed.finished
    wanted = digest.named_leaves(uninterrupted.state.generator)
    for name, leaf in digest.named_leaves(resumed.state.generator).items():
        np.testing.assert_allclose(leaf, wanted[name], atol=1e-4, err_msg=name)


def test_the_export_is_merged_and_computes_what_the_run_does(whole):
    directory, trainer = whole
    with jax.set_mesh(trainer.mesh):
        finishing.export_student(options.load(Config, directory / "config.yaml"), trainer)
    exported, params = weights.load(directory / "export" / "student")
    tokens = np.arange(12)[None] % 250
    segments = Segments(np.ones_like(tokens), np.ones_like(tokens))
    places = jax.tree.map(jax.numpy.asarray, (tokens, tokens, segments))
    of_export = decoder.logits(exported, params, *places)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        network = loading.load_from_run(directory, "generator", jax.sharding.get_mesh())
        assert network.config.lora is None
        assert network.adapter is not None
        digests = digest.digests(network.adapter.trained)
        np.testing.assert_array_equal(
            jax.device_get(network.params["layers"]["down"]["kernel"]),
            params["layers"]["down"]["kernel"],
        )
    with jax.set_mesh(trainer.mesh):
        assert digests == digest.digests(trainer.state.generator)
        host = jax.device_get(trainer.generator)
    apart = decoder.logits(trainer.networks[0], jax.tree.map(jax.numpy.asarray, host), *places)
    np.testing.assert_allclose(apart, of_export, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # httpx2 of huggingface_hub
def test_adapters_are_uploaded_next_to_the_network_for_peft(
    whole, model, tmp_path, hub, capsys, monkeypatch
):
    directory, trainer = whole
    monkeypatch.setattr(exits, "_leave", sys.exit)  # else a failure ends this process
    card = model / "README.md"  # of an export: the base is known by its name on the hub
    (model / "gad_jax.json").write_text("{}")
    card.write_text("---\nbase_model: org/base\n---\n")
    try:
        flags = f"--out={tmp_path}", "--part=student", "--push=org/student"
        assert export.main([str(directory), *flags]) == 0
    finally:
        card.unlink()
        (model / "gad_jax.json").unlink()
    lines = capsys.readouterr().out.splitlines()
    where = f"{hub.url}/org/student-adapter"
    assert f"{hub.url}/org/student" in lines
    assert lines[-2] == where
    assert hub.private == {"org/student": True, "org/student-adapter": True}
    found = dict(hub.repositories["org/student-adapter"])
    assert found.pop(".gitattributes")
    stored = tmp_path / "student-adapter"
    assert set(found) == {path.name for path in stored.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(found)
    changed = [name for name in found if found[name] != (stored / name).read_bytes()]
    assert changed == []
    settings = json.loads(found["adapter_config.json"])
    assert (settings["base_model_name_or_path"], settings["r"]) == ("org/base", 4)
    about = ModelCard(found["README.md"].decode()).data
    assert (about.base_model, about.library_name) == ("org/base", "peft")
    assert about["base_model_relation"] == "adapter"
    merged = ModelCard(hub.repositories["org/student"]["README.md"].decode()).data
    assert (merged.base_model, merged.library_name) == ("org/base", "transformers")
    tensors = load(found["adapter_model.safetensors"])
    trained = trainer.state.generator["layers"]["query"]["lora_b"]
    name = next(name for name in tensors if "layers.0.self_attn.q_proj.lora_B" in name)
    np.testing.assert_array_equal(tensors[name], jax.device_get(trained)[0].T)


def test_a_run_on_a_quantised_base_resumes_bit_for_bit(model, tmp_path):
    flags = *FLAGS, f"--student.path={model}", "--lora.base_dtype=nf4", "--lora.targets=query,down"
    flags = *flags, "--optimizer.moments=float8"
    whole, parted = (settings(tmp_path / name, *flags) for name in ("whole", "parted"))
    (tmp_path / "whole").mkdir()
    setup.claim(whole)
    uninterrupted = run(whole)
    assert not run(parted, 1).finished
    resumed = run(parted)
    with jax.set_mesh(resumed.mesh):
        assert digest.digests(resumed.state) == digest.digests(uninterrupted.state)
    assert rows(tmp_path / "parted") == rows(tmp_path / "whole")
    moments = resumed.state.generator_optimizer[1][0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(moments.nu)} == {"uint8"}
    # Decoding keeps the base and the adapters as the step has them.
    assert all(row["logprobs/gap"] < 1e-5 for row in rows(tmp_path / "whole"))
    kernels = resumed.frozen.generator["layers"]["gate"]["kernel"]
    assert {name: leaf.dtype.name for name, leaf in kernels.items()} == {
        "codes": "uint8",
        "scales": "bfloat16",
    }
    # What is read back is the network that was trained: the base dequantised, adapters merged.
    with jax.set_mesh(mesh := make_mesh(devices=jax.devices()[:1])):
        network = loading.load_from_run(tmp_path / "whole", "generator", mesh)
        assert network.config.quantisation == "none"
        found = jax.device_get(network.params["layers"]["down"]["kernel"])
    config = resumed.networks[0]
    with jax.set_mesh(resumed.mesh):
        merged = adapters.merge(config, resumed.generator)["layers"]["down"]["kernel"]
        np.testing.assert_allclose(found, jax.device_get(merged), atol=1e-6)
    parted = dataclasses.replace(parted, lora=dataclasses.replace(parted.lora, base_dtype="int8"))
    with pytest.raises(UserError, match=r"on its base in nf4, and this one is in int8; give the"):
        run(parted)


def test_either_network_alone_may_have_adapters(tmp_path):
    for ranks, has in {(4, 0): (True, False), (0, 4): (False, True)}.items():
        flags = f"--lora.rank={ranks[0]}", f"--lora.discriminator_rank={ranks[1]}"
        config = settings(tmp_path, *flags, "--student.path=random-tiny")
        both = architectures.configs(config)
        assert tuple(each.lora is not None for each in both) == has
        with jax.set_mesh(mesh := make_mesh()):
            frozen = bases.load(config, both, mesh)
            trained = state.load_discriminator(config, both[1], mesh)
            assert not bases.is_shared(config, both)
        assert tuple(base is not None for base in frozen) == has
        assert ("embedding" in trained) == has[0]
        assert "score" in trained
        assert "head" not in (frozen.discriminator or {})


def test_a_run_is_no_base(whole, tmp_path):
    directory, _ = whole
    config = settings(tmp_path, *FLAGS, f"--student.path={directory}")
    setup.claim(config)
    with pytest.raises(UserError, match=r"--student\.path=\S+ is a run, whose checkpoints come"):
        run(config)
