"""How a model is named: the one place that turns a name into a Hugging Face directory.

What the directory's files mean is read elsewhere (weights.py, the families, data/chat.py).
"""

import difflib
import json
import os
import re
from pathlib import Path

from gad_jax.base.errors import UserError, first_line
from gad_jax.base.files import irregular
from gad_jax.models.builtin import smollm2, tiny

_BUILT_IN = {smollm2.NAME: smollm2.fetch, tiny.NAME: tiny.fetch}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HUB_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICEN[CS]E*",
    "NOTICE*",
]
# Other formats live in folders; `consolidated` holds the same weights a second time.
_HUB_IGNORED = ["*/*", "consolidated*.safetensors"]
_TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_MORE_TEMPLATES = "additional_chat_templates/*.jinja"
# The largest tokenizer.json known has 35 MB; a config.json, even with lists, less than one.
_MOST_BYTES = {"config.json": 2**24, "generation_config.json": 2**24}
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def resolve(name: str) -> Path:
    """Returns the local Hugging Face directory of the model called `name`.

    `name` is `smollm2-135m-instruct`, `random-tiny`, a local directory, or an `org/name` of the
    Hugging Face Hub (downloaded once; safetensors and text files only), tried in this order: a
    directory called random-tiny is `./random-tiny`. The returned directory has config.json,
    complete safetensors weights and a tokenizer. Raises UserError, one sentence, otherwise.
    """
    if name in _BUILT_IN:
        return _check(_BUILT_IN[name](), name)
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown ~user
    if name and path.is_dir():
        return _check(path, name)
    if path.is_file():
        raise UserError(
            f"{name!r} is a file; name the Hugging Face directory that holds config.json, "
            "*.safetensors and the tokenizer"
        )
    if name and (kind := irregular(path)):
        raise UserError(f"{name!r} is {kind}; name the Hugging Face directory of a model")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return _check(_download(name), name)
    if name.startswith((".", "~")) or "/" in name or "\\" in name:
        raise UserError(
            f"{name!r} is not a directory here; check the path, or give a built-in model "
            f"({_names()}) or a hub id (org/name)"
        )
    close = difflib.get_close_matches(name.lower(), _BUILT_IN, n=1, cutoff=0.5)
    advice = "give a local Hugging Face directory or a hub id (org/name)"
    if close:
        advice = f"did you mean {close[0]!r}?"
    raise UserError(
        f"{name!r} is neither a built-in model ({_names()}) nor a directory here; {advice}"
    )


def _names() -> str:
    return ", ".join(_BUILT_IN)


def _download(name: str) -> Path:
    """Returns the snapshot of a hub repository, from huggingface_hub's own cache when offline."""
    from huggingface_hub import errors, snapshot_download  # here: only a hub id needs it

    local = f"{name!r} is not a directory here, and as a hub id it"
    try:
        return Path(
            snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED)
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{local} asks for its terms to be accepted; accept them at huggingface.co/{name} and "
            "log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{local} is unknown or private; check the spelling, or log in with `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{local} is malformed; give org/name or a directory's path") from error
    except Exception as error:  # no network, offline mode, a 5xx: the classes vary with its version
        reason = first_line(error).removeprefix("Got: ")
        raise UserError(
            f"{local} could not be downloaded ({reason}); check the path or the connection, or "
            "copy the model here and give its directory"
        ) from error


def _check(directory: Path, name: str) -> Path:
    """Returns `directory` if it is a whole Hugging Face model; UserError says what is missing."""
    files = {path.name for path in directory.iterdir()}
    more = (path.relative_to(directory) for path in directory.glob(_MORE_TEMPLATES))
    for file in (*sorted(files), *more):
        _check_file(directory / file, name)
    if "config.json" not in files and "adapter_config.json" in files:
        raise UserError(
            f"{name!r} is a PEFT adapter without its base; train from it with --student.path=BASE "
            "--lora.adapter=ADAPTER and the adapter's --lora.rank, or merge it in PEFT "
            "(merge_and_unload) and give the result"
        )
    if "config.json" not in files:
        raise UserError(
            f"{name!r} has no config.json, so it is no Hugging Face model; give the directory that "
            "`save_pretrained` or gad_jax.export wrote"
        )
    weights = {file for file in files if file.endswith(".safetensors")}
    if not weights:
        unsafe = sorted(file for file in files if file.endswith(_UNSAFE_SUFFIXES))
        if unsafe:
            raise UserError(
                f"{name!r} has its weights in {unsafe[0]}, a format that can run code when read; "
                "convert them to safetensors (load them in transformers and `save_pretrained`)"
            )
        raise UserError(f"{name!r} has no *.safetensors weights; give a directory that has them")
    for index in sorted(file for file in files if file.endswith(".safetensors.index.json")):
        _check_index(directory / index, weights, name)
    if not files.intersection(_TOKENIZER_FILES):
        raise UserError(
            f"{name!r} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}); copy the tokenizer "
            "files of the model it was made from into it"
        )
    return directory


def _check_file(path: Path, name: str) -> None:
    """Raises UserError for what would be read and is no file, or a text of an absurd size."""
    wanted = path.name.endswith((".safetensors", *_TEXTS))
    if not wanted or (path.is_symlink() and not path.exists()):  # a broken link: reported later
        return
    if not path.is_file():
        raise UserError(
            f"{name!r} has {path.name}, which is a directory or a device and no file; replace it "
            "by the model's file"
        )
    most = _MOST_BYTES.get(path.name, 2**28)
    if path.suffix != ".safetensors" and path.stat().st_size > most:
        raise UserError(
            f"{name!r} has {path.name} of {path.stat().st_size // 2**20} MiB, and such files have "
            f"less than {most // 2**20}; fetch the model again"
        )


def _check_index(index: Path, weights: set[str], name: str) -> None:
    """Raises UserError for an index that names missing files, or files outside the directory."""
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{index.name} of {name!r} cannot be read; copy the file again") from error
    missing = sorted(map(str, shards - weights))
    if missing:
        raise UserError(
            f"{name!r} lacks {len(missing)} of the {len(shards)} files that {index.name} names "
            f"({missing[0]}); copy or download them again"
        )
