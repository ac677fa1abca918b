"""An export keeps its source's files byte for byte, and changes what training changed alone."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from gad_jax.base.errors import UserError
from gad_jax.models import weights, writing
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.models.carried import Carried
from tests.models.files import END, PAD, as_score, carried_from, edit_json

LICENCE = "Apache License\nVersion 2.0, January 2004\n"
MACHINE = ("is_local", "local_files_only", "name_or_path", "/home/someone")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with every kind of file that a tokenizer has, as a hub repository may."""
    directory = tmp_path / "source"
    write_tiny(directory, "qwen2", False)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    # no writer of JSON gives these bytes again
    text = json.dumps(config, indent=3).replace("2048", "2048 ") + "\r\n\n"
    (directory / "tokenizer_config.json").write_bytes(text.encode())
    (directory / "chat_template.jinja").write_text(template)
    (directory / "special_tokens_map.json").write_text('{"eos_token" :  "<|im_end|>"}')
    (directory / "added_tokens.json").write_text('{"<|im_end|>":258}')
    (directory / "vocab.json").write_text('{"a":97 }')
    (directory / "merges.txt").write_bytes(b"#version: 0.2\r\n")
    (directory / "tokenizer.model").write_bytes(b"\x00\xff\x0e")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (directory / "generation_config.json").write_text(
        f'{{"eos_token_id":[{PAD}, {END}], "top_p":  0.95, "do_sample": true}}'
    )
    (directory / "LICENSE.txt").write_text(LICENCE)
    (directory / "NOTICE").write_text("Made by many.")
    (directory / "README.md").write_text("# The source's own page\n")
    (directory / "pytorch_model.bin").write_bytes(b"never copied")
    return directory


def saved(source: Path, score: bool = False, **changes: Any) -> Path:
    network = weights.load(source)
    config, params = as_score(*network) if score else network
    known = carried_from(source)
    known = Carried(**({**vars(known)} | changes))
    writing.save(source.with_name("out"), config, params, known)
    return source.with_name("out")


def files(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_files_are_the_same_bytes(source: Path) -> None:
    before, after = files(source), files(saved(source))
    ours = {"config.json", "model.safetensors", "SHA256SUMS"}
    assert set(after) - ours == set(before) - ours - {"README.md", "pytorch_model.bin"}
    for name in set(after) - ours:
        assert after[name] == before[name], name
    listed = [line.split("  ")[1] for line in after["SHA256SUMS"].decode().splitlines()]
    assert listed == sorted(set(after) - {"SHA256SUMS"})


def test_end_tokens_of_the_training_are_added(source: Path) -> None:
    path = source / "generation_config.json"
    for given in ({"eos_token_id": END}, {"eos_token_id": None}, {"_from_model_config": True}):
        path.write_text(json.dumps({"top_p": 0.95, **given}))
        written = json.loads((saved(source) / path.name).read_text())
        assert written == {"top_p": 0.95, "eos_token_id": [END, PAD]}
    # one token is as good as a list of one
    path.write_text(f'{{"eos_token_id":  {END} }}')
    assert (saved(source, end_tokens=(END,)) / path.name).read_bytes() == path.read_bytes()
    path.unlink()
    written = json.loads((saved(source) / path.name).read_text())
    assert written == {"pad_token_id": PAD, "eos_token_id": [END, PAD]}


def test_a_pad_token_is_changed_where_it_ends_an_answer(source: Path) -> None:
    edit_json(source / "special_tokens_map.json", pad_token="<|endoftext|>")
    before, after = files(source), files(saved(source, score=True))
    names = {"tokenizer_config.json", "special_tokens_map.json"}
    for name in names:
        old, new = json.loads(before[name]), json.loads(after[name])
        assert new == old | {"pad_token": "<|im_start|>"}
    for name in set(after) - names - {"config.json", "model.safetensors", "SHA256SUMS"}:
        assert after[name] == before[name], name
    assert "generation_config.json" not in after
    harmless = files(saved(source, score=True, end_tokens=(END,)))
    for name in names:
        assert harmless[name] == before[name]


def test_no_trace_of_a_machine(source: Path) -> None:
    edit_json(
        source / "tokenizer_config.json",
        is_local=True,
        local_files_only=True,
        name_or_path="/home/someone/models/x",
        special_tokens_map_file="/home/someone/cache/y",
        tokenizer_class="TokenizersBackend",
        extra_special_tokens=["<|im_start|>"],
    )
    edit_json(source / "config.json", _name_or_path="/home/someone/models/x")
    out = saved(source)
    for name in ("config.json", "tokenizer_config.json"):
        assert not any(word in (out / name).read_text() for word in MACHINE), name
    config = json.loads((out / "tokenizer_config.json").read_text())
    # what transformers 4 calls these
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in config
    # a name is no place
    edit_json(source / "tokenizer_config.json", name_or_path="org/name")
    assert "org/name" in (saved(source) / "tokenizer_config.json").read_text()


def test_fields_of_the_config_are_kept_in_the_older_form(source: Path) -> None:
    path = source / "config.json"
    hf = json.loads(path.read_text())
    hf["rope_parameters"] = {"rope_type": "default", "rope_theta": hf.pop("rope_theta")}
    hf["dtype"] = hf.pop("torch_dtype")
    hf |= {"use_cache": False, "initializer_range": 0.01, "transformers_version": "4.41.2"}
    path.write_text(json.dumps(hf))
    written = json.loads((saved(source) / path.name).read_text())
    assert (written["rope_theta"], written["torch_dtype"]) == (1e6, "float32")
    assert "rope_parameters" not in written
    assert "dtype" not in written
    kept = {name: hf[name] for name in hf if name not in ("rope_parameters", "dtype")}
    assert {name: written[name] for name in kept} == kept
    # the score head is no causal model's, and its fields are not the source's
    edit_json(path, num_labels=3, id2label={"0": "a", "1": "b", "2": "c"}, problem_type="x")
    written = json.loads((saved(source, score=True) / path.name).read_text())
    assert written["architectures"] == ["Qwen2ForSequenceClassification"]
    assert (written["num_labels"], written["id2label"]) == (1, {"0": "score"})
    assert "problem_type" not in written


def test_a_network_of_another_family_keeps_none_of_these_fields(
    source: Path, tmp_path: Path
) -> None:
    edit_json(source / "config.json", unsloth_version="1.2")
    write_tiny(tmp_path / "other", "llama")
    assert "unsloth_version" in json.loads((saved(source) / "config.json").read_text())
    config, params = weights.load(tmp_path / "other")
    writing.save(tmp_path / "out", config, params, carried_from(source))
    assert "unsloth_version" not in json.loads((tmp_path / "out" / "config.json").read_text())


TEMPLATE = "{{ messages[0].content }} "


def test_a_changed_chat_template_replaces_the_file(source: Path) -> None:
    before, after = files(source), files(saved(source, chat_template=TEMPLATE))
    assert after["chat_template.jinja"].decode() == TEMPLATE
    same = {"chat_template.jinja", "config.json", "model.safetensors", "SHA256SUMS"}
    for name in set(after) - same:
        assert after[name] == before[name], name


@pytest.mark.parametrize("several", [False, True])
def test_a_changed_chat_template_of_the_config(source: Path, several: bool) -> None:
    (source / "chat_template.jinja").unlink()
    stored: Any = "old"
    if several:
        stored = [{"name": n, "template": f"old {n}"} for n in ("default", "tool_use")]
    edit_json(source / "tokenizer_config.json", chat_template=stored)
    out = saved(source, chat_template=TEMPLATE)
    assert not (out / "chat_template.jinja").exists()
    found = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    default = {"name": "default", "template": TEMPLATE}
    assert found == ([default, stored[1]] if several else TEMPLATE)


def test_a_template_that_tokenizers_do_not_read_is_given_to_them(source: Path) -> None:
    (source / "chat_template.jinja").rename(source / "hidden")
    template = (source / "hidden").read_text()
    (source / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    out = saved(source)
    assert (out / "chat_template.json").read_bytes() == (source / "chat_template.json").read_bytes()
    assert (out / "chat_template.jinja").read_text() == template
    changed = saved(source, chat_template=TEMPLATE)
    assert (changed / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((changed / "chat_template.json").read_text()) == {"chat_template": TEMPLATE}


def test_links_of_a_cache_become_files(source: Path, tmp_path: Path) -> None:
    """A hub snapshot is a folder of links."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in source.iterdir():
        (snapshot / path.name).symlink_to(path)
    linked = saved(snapshot)
    assert not any(path.is_symlink() for path in linked.rglob("*"))
    assert (linked / "merges.txt").read_bytes() == (source / "merges.txt").read_bytes()


def test_what_is_no_json_object_is_named(source: Path) -> None:
    config, params = weights.load(source)
    known = carried_from(source)
    for content in ("[1]", "{", "1"):
        (source / "generation_config.json").write_text(content)
        with pytest.raises(UserError, match=r"generation_config.json"):
            writing.save(source.with_name("out"), config, params, known)


def test_everything_is_read_again_as_it_was(source: Path) -> None:
    config, params = weights.load(source)
    again, loaded = weights.load(saved(source))
    assert again == config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded, params))
