"""Every way to name a model, and every sentence for a name that does not work."""

import os
import re

import huggingface_hub
import pytest
from huggingface_hub import errors

from gad_jax.base.errors import UserError
from gad_jax.models import source
from gad_jax.models.builtin import smollm2, tiny
from gad_jax.models.source import resolve


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A complete local model; no test here reaches the hub or the real cache."""
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse(AssertionError("download")))
    tiny.write_tiny(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model"


def refuse(error):
    def snapshot_download(*_, **__):
        raise error

    return snapshot_download


def message(name):
    """The error for `name`: a single sentence on a single line."""
    with pytest.raises(UserError) as caught:
        resolve(name)
    text = str(caught.value)
    assert "\n" not in text
    assert not text.endswith(".")
    assert not re.search(r"\. [A-Z]", text)
    return text


def test_directory_by_absolute_relative_or_home_path(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    for name in (str(model), "./model", "model", "~/model", "model/"):
        assert resolve(name).samefile(model)


def test_built_in_names(model, monkeypatch):
    assert (resolve("random-tiny") / "model.safetensors").is_file()
    monkeypatch.setitem(source._BUILT_IN, smollm2.NAME, lambda: model)
    assert resolve("smollm2-135m-instruct") == model


def test_built_in_name_wins_over_a_directory_of_that_name(model):
    model.rename("random-tiny")
    assert resolve("random-tiny").is_relative_to(model.parent / "cache")
    assert resolve("./random-tiny").samefile("random-tiny")


def test_hub_id_downloads_safetensors_and_text_only(model, monkeypatch):
    calls = []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        calls.append(name)
        files = ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
        unwanted = ["pytorch_model.bin", "onnx/model.safetensors", "x.pkl", "modeling_x.py"]
        unwanted += ["consolidated.safetensors", "training_args.bin", "original/config.json"]
        filtered = huggingface_hub.utils.filter_repo_objects(
            files + unwanted, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        assert list(filtered) == files
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("Org-1/Model_2.5") == model
    assert calls == ["Org-1/Model_2.5"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.RepositoryNotFoundError, "is unknown or private; check the spelling"),
        (errors.GatedRepoError, "accept them at huggingface.co/org/model and log in"),
    ],
)
def test_hub_refuses(model, monkeypatch, error, words):
    refusal = error.__new__(error)  # their constructors want a live HTTP response
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse(refusal))
    text = message("org/model")
    assert text.startswith("'org/model' is not a directory here, and as a hub id it ")
    assert words in text


def test_hub_is_not_reachable(model, monkeypatch):
    error = errors.LocalEntryNotFoundError("Got: ConnectError: name not known\nPlease check …")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse(error))
    assert message("runs/model") == (
        "'runs/model' is not a directory here, and as a hub id it could not be downloaded "
        "(ConnectError: name not known); check the path or the connection, or copy the model here "
        "and give its directory"
    )


def test_hub_id_is_malformed(model, monkeypatch):
    error = errors.HFValidationError("Cannot have -- or .. in repo_id: 'org/a--b'.")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse(error))
    assert "is malformed; give org/name or a directory's path" in message("org/a--b")


@pytest.mark.parametrize(
    "name", ["/no/such", "./none", "../x/y", "~/none", "~nobody-here/x", "a/b/c", "a\\b", "."]
)
def test_path_that_is_no_directory(model, monkeypatch, name):
    if name == ".":
        assert "has no config.json" in message(name)
        return
    assert message(name) == (
        f"{name!r} is not a directory here; check the path, or give a built-in model "
        "(smollm2-135m-instruct, random-tiny) or a hub id (org/name)"
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("smollm2", "did you mean 'smollm2-135m-instruct'?"),
        ("SmolLM2-135M-Instruct", "did you mean 'smollm2-135m-instruct'?"),
        ("tiny-random", "did you mean 'random-tiny'?"),
        ("random_tiny", "did you mean 'random-tiny'?"),
        ("gpt2", "give a local Hugging Face directory or a hub id (org/name)"),
        ("", "give a local Hugging Face directory or a hub id (org/name)"),
    ],
)
def test_unknown_bare_name(model, name, advice):
    assert message(name) == (
        f"{name!r} is neither a built-in model (smollm2-135m-instruct, random-tiny) nor a "
        f"directory here; {advice}"
    )


def test_file(model):
    assert "is a file; name the Hugging Face directory" in message("model/model.safetensors")


def test_no_config(model):
    (model / "config.json").unlink()
    assert "'model' has no config.json" in message("model")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_formats_that_run_code_are_refused(model, file):
    (model / "model.safetensors").rename(model / file)
    text = message("model")
    assert f"has its weights in {file}, a format that can run code when read; convert them" in text


def test_safetensors_beside_another_format_are_taken(model):
    (model / "training_args.bin").touch()
    assert resolve("model").samefile(model)


def test_no_weights(model):
    (model / "model.safetensors").unlink()
    assert "has no *.safetensors weights" in message("model")


def test_no_tokenizer(model):
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer (tokenizer.json or tokenizer.model or vocab.json)" in message("model")


def test_missing_shard(model):
    tiny.write_tiny(model.parent / "shards", num_shards=3)
    assert resolve("shards").samefile("shards")
    (model.parent / "shards/model-00002-of-00003.safetensors").unlink()
    assert message("shards") == (
        "'shards' lacks 1 of the 3 files that model.safetensors.index.json names "
        "(model-00002-of-00003.safetensors); copy or download them again"
    )


def test_index_may_not_leave_the_directory(model):
    (model.parent / "outside.safetensors").touch()
    index = '{"weight_map": {"model.norm.weight": "../outside.safetensors"}}'
    (model / "model.safetensors.index.json").write_text(index)
    assert "(../outside.safetensors)" in message("model")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_index_that_cannot_be_read(model, text):
    (model / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json of 'model' cannot be read" in message("model")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_what_is_no_file_is_named(model, file, kind):
    path = model / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert message("model") == (
        f"'model' has {file}, which is a directory or a device and no file; replace it by the "
        "model's file"
    )


def test_a_config_of_an_absurd_size(model):
    os.truncate(model / "config.json", 100 * 2**20)
    assert "has config.json of 100 MiB, and such files have less than 16" in message("model")


def test_a_deep_index(model):
    (model / "model.safetensors.index.json").write_text('{"a":' * 100_000)
    assert "model.safetensors.index.json of 'model' cannot be read" in message("model")
