"""A run's networks as Hugging Face directories: the ones of the checkpoint, bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.export import __main__ as export
from gad_jax.models import decoder, weights
from gad_jax.models.builtin import tiny
from gad_jax.models.config import DecoderConfig
from gad_jax.training import loading
from gad_jax.types import Params, Segments

pytest_plugins = ["tests.run_fixtures"]

FILE = "model.safetensors"


def one_device() -> jax.sharding.Mesh:
    return make_mesh(devices=jax.devices()[:1])


def tensors(directory: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(directory / FILE).items()}


def exported(run: Path, out: Path, *flags: str) -> Path:
    assert export.main([str(run), f"--out={out}", *flags]) == 0
    return out


def test_the_command_writes_both_networks(
    tiny_run: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    written_by_train = run / "export" / "student"
    before = {path.name: path.read_bytes() for path in written_by_train.iterdir()}
    done = command("export", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{run}/export/student: student of {run}, step 2 (gad), float32",
        f"{run}/export/discriminator: discriminator of {run}, step 2 (gad), float32",
        f"next: python -m gad_jax.generate --model {run}/export/student",
    ]
    # what the run itself exported at its end is written again
    after = {path.name: path.read_bytes() for path in written_by_train.iterdir()}
    assert after == before
    config, params = weights.load(run / "export" / "discriminator")
    assert config.head == "score"
    assert params["score"]["kernel"].shape == (32, 1)


def test_a_step_is_exported_on_other_devices(tiny_run: Path, tmp_path: Path) -> None:
    """The run was made on one device; eight read it here."""
    first = exported(tiny_run / "checkpoints" / "1", tmp_path / "1")
    newest = exported(tiny_run, tmp_path / "2")
    assert sorted(path.name for path in first.iterdir()) == ["discriminator", "student"]
    # at step 1 the student has not learnt yet
    untouched = tensors(tiny.fetch())
    assert tensors(first / "student") == untouched
    for name, tensor in tensors(newest / "student").items():
        assert tensor != untouched[name], name
    assert tensors(newest / "student") == tensors(tiny_run / "export" / "student")
    judges = [tensors(directory / "discriminator") for directory in (first, newest)]
    assert judges[0].keys() == judges[1].keys()
    assert all(judges[0][name] != judges[1][name] for name in judges[0])


def test_one_part_in_half_precision(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported(tiny_run, tmp_path / "out", "--part=student", "--dtype=bfloat16")
    assert capsys.readouterr().out.splitlines()[0].endswith("step 2 (gad), bfloat16")
    assert [path.name for path in out.iterdir()] == ["student"]
    assert json.loads((out / "student/config.json").read_text())["torch_dtype"] == "bfloat16"
    _, half = weights.load(out / "student")
    _, whole = weights.load(tiny_run / "export" / "student")
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16).astype(np.float32), whole)
    jax.tree.map(np.testing.assert_array_equal, half, rounded)


def test_the_student_speaks_as_before(tiny_run: Path) -> None:
    """Tokens, template and end tokens are those of the model that it started from."""
    student, origin = (Chat.load(path) for path in (tiny_run / "export/student", tiny.fetch()))
    assert student.fingerprint == origin.fingerprint
    assert student.end_tokens == origin.end_tokens
    assert student.pad_token == origin.pad_token


def conversation(directory: Path) -> np.ndarray:
    """Returns a prompt and an answer that ends, as tokens [1 T]."""
    chat = Chat.load(directory, "none")
    prompt = chat.encode_prompt([{"role": "user", "content": "Name a fruit."}])
    return np.asarray([[*prompt, *chat.encode_response("An apple.")]], np.int32)


def computed(compute: Any, config: DecoderConfig, params: Params, ids: np.ndarray) -> np.ndarray:
    """Returns what a function of decoder.py gives for one row, on one device."""
    arrays = (ids, np.arange(ids.shape[1], dtype=np.int32)[None], np.ones_like(ids))
    tokens, positions, one = devices.put(arrays, one_device(), "batch")
    function = jax.jit(compute, static_argnums=0)
    return devices.fetch(function(config, params, tokens, positions, Segments(one, one)))


def test_the_discriminator_scores_as_in_the_run(tiny_run: Path, tmp_path: Path) -> None:
    out = exported(tiny_run, tmp_path, "--part=discriminator") / "discriminator"
    ids = conversation(out)
    mesh = one_device()
    with jax.set_mesh(mesh):
        network = loading.load_from_run(tiny_run, "discriminator", mesh)
        in_run = computed(decoder.score, network.config, network.params, ids)
        reloaded = computed(decoder.score, *weights.load(out, mesh), ids)
    np.testing.assert_array_equal(reloaded, in_run)


def test_mistakes_are_one_sentence(
    tiny_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    missing = tmp_path / "missing"
    says = refused(export.main, missing)
    assert (
        says
        == f"{missing} is not a run directory: it has no config.yaml; name a --run_dir of train"
    )
    says = refused(export.main, tiny_run / "checkpoints" / "7")
    assert "has no checkpoint of step 7; it has [1, 2]" in says
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(tiny_run / "config.yaml", empty)
    assert "checkpoints" in refused(export.main, empty)
    (empty / "checkpoints").mkdir()
    assert "no checkpoint" in refused(export.main, empty)
    (empty / "config.yaml").write_text("generatr: 1\n")
    assert "config.yaml:1: Config has no field 'generatr'" in refused(export.main, empty)


def test_a_mistake_ends_the_process_with_code_2(
    tmp_path: Path, command: Callable[..., Any]
) -> None:
    done = command("export", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"{tmp_path} is not a run directory: it has no config.yaml; name a --run_dir of train\n"
    )


@pytest.mark.torch
def test_transformers_computes_what_the_run_does(tiny_run: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    out = exported(tiny_run, tmp_path)
    kinds = {
        "student": (AutoModelForCausalLM, "generator", decoder.logits),
        "discriminator": (AutoModelForSequenceClassification, "discriminator", decoder.score),
    }
    for name, (auto, part, compute) in kinds.items():
        ids = conversation(out / name)
        model, info = auto.from_pretrained(out / name, output_loading_info=True)
        assert not any(info.values()), info
        with torch.no_grad():
            theirs = model(torch.from_numpy(ids).long()).logits.numpy()
        with jax.set_mesh(one_device()):
            network = loading.load_from_run(tiny_run, part, one_device())
            ours = computed(compute, network.config, network.params, ids)
        if name == "discriminator":
            ours = ours[:, -1:] - devices.fetch(network.params["score"]["bias"])
        # float32 sums in another order, through two layers
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
