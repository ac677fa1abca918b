"""What an export carries over from the model that it was trained from, byte for byte.

Tokenizer files, chat template, sampling defaults, licence, and the fields of config.json that only
other programs read. What training changed is changed in them, and no more. Weights are written in
`writing.py`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.models.families.fields import is_harmless

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_LEGAL = re.compile(r"(?i)(licen[cs]e|notice|copying|use[-_]policy|copyright)\b.*")
_LEGAL_BYTES = 2**20

# What transformers 5 notes of the machine that it ran on; other programs take it for settings.
_MACHINE = ("is_local", "local_files_only")
# Harmless as a name, but a directory's path says who made it.
_PLACES = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "cache_dir")

# Harmless fields of config.json that an export has anew, or not at all.
_WRITTEN_ANEW = (
    *("architectures", "dtype", "torch_dtype", "num_labels", "id2label", "label2id"),
    *("problem_type", "score_bias", "name_or_path"),
)


@dataclasses.dataclass(frozen=True)
class Carried:
    """Where an export's files come from, and what training changed in them.

    `directory` has the tokenizer, `network` the config.json (a discriminator may have started from
    another model). `end_tokens` are those that a response ends with. `chat_template` replaces that
    of the files; None leaves it.
    """

    directory: Path
    tokenizer: Any
    end_tokens: tuple[int, ...]
    network: Path
    chat_template: str | None = None

    def write_tokenizer(self, target: Path, pad_token: str | None = None) -> None:
        """Copies the tokenizer's files; changes the chat template and, if given, the pad token."""
        for path in _matching(self.directory, TOKENIZER_FILES):
            copy = target / path.relative_to(self.directory)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
        _edit(target / "tokenizer_config.json", _for_all_versions)
        if pad_token is not None:
            for name in ("tokenizer_config.json", "special_tokens_map.json"):
                _edit(target / name, lambda content: content | {"pad_token": pad_token})
        template = self.chat_template or _of_processor(target)
        if template is not None:
            _write_template(target, template)

    def write_generation(self, target: Path) -> None:
        """Copies generation_config.json, with all end tokens of the training.

        A model without the file gets one: generation would stop at config.json's one token.
        """
        name = "generation_config.json"
        path = self.directory / name
        content = read_json(path) if path.is_file() else self._plain_generation()
        listed = content.get("eos_token_id")
        listed = listed if isinstance(listed, list) else [listed]
        if path.is_file() and {*listed} == {*self.end_tokens}:
            (target / name).write_bytes(path.read_bytes())
            return
        content.pop("_from_model_config", None)  # which has transformers read config.json instead
        write_json(target / name, content | {"eos_token_id": list(self.end_tokens)})

    def _plain_generation(self) -> dict[str, Any]:
        ids = {name: getattr(self.tokenizer, name) for name in ("bos_token_id", "pad_token_id")}
        return {name: token for name, token in ids.items() if token is not None}

    def fields(self, written: dict[str, Any]) -> dict[str, Any]:
        """Returns the config.json of an export: `written`, which decides what the network computes,
        and the fields of the source that say nothing about that."""
        source = read_json(self.network / "config.json")
        if source.get("model_type") != written["model_type"]:
            source = {}
        kept = {
            name: value
            for name, value in source.items()
            if is_harmless(name) and name not in _WRITTEN_ANEW and not name.startswith("_")
        }
        # transformers takes a tokenizer without a version next to it for one of Mistral's
        kept.setdefault("transformers_version", metadata.version("transformers"))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kept.setdefault(name, getattr(self.tokenizer, name))
        return written | {name: kept[name] for name in kept if name not in written}

    def write_legal(self, target: Path) -> None:
        """Copies the licence and notices of the weights that the training started from."""
        for path in sorted(self.network.iterdir()):
            small = path.is_file() and path.stat().st_size <= _LEGAL_BYTES
            if small and _LEGAL.fullmatch(path.name):
                (target / path.name).write_bytes(path.read_bytes())

    def harmless_pad(self) -> int | None:
        """Returns a pad token that ends no response, the tokenizer's own if it is one.

        transformers reads a score at the last token that is not padding: where the pad token is
        also an end token, it would read the token before the end.
        """
        known = self.tokenizer
        first = (known.pad_token_id, known.unk_token_id, known.bos_token_id)
        added = (token for token, kind in known.added_tokens_decoder.items() if kind.special)
        for token in (*first, *known.all_special_ids, *added):
            if token is not None and token not in self.end_tokens:
                return token
        return known.pad_token_id


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; fetch the model again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object as transformers does."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _matching(directory: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(directory.glob(pattern)) if path.is_file())


def _edit(path: Path, change: Any) -> None:
    """Rewrites a JSON file if `change` gives another content; does nothing where none is."""
    if path.is_file():
        before = read_json(path)
        after = change(dict(before))
        if after != before:
            write_json(path, after)


def _for_all_versions(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer_config.json without what only transformers 5, or one machine, reads."""
    for name in _MACHINE:
        content.pop(name, None)
    for name in _PLACES:
        if Path(str(content.get(name, ""))).is_absolute():
            del content[name]
    if content.get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        # the default of transformers 4 has token_type_ids, which its own models refuse
        content.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(content.get("extra_special_tokens"), list):
        extra = content.pop("extra_special_tokens")
        content.setdefault("additional_special_tokens", extra)
    return content


def _of_processor(target: Path) -> str | None:
    """Returns the template of chat_template.json where that is the only one, else None."""
    path, config = target / "chat_template.json", target / "tokenizer_config.json"
    if not path.is_file() or (target / "chat_template.jinja").is_file():
        return None
    if config.is_file() and read_json(config).get("chat_template") is not None:
        return None
    template = read_json(path).get("chat_template")
    return template if isinstance(template, str) else None


def _write_template(target: Path, template: str) -> None:
    """Stores the chat template wherever there is one, else as chat_template.jinja.

    A list of named templates stays one: next to chat_template.jinja, it would not be read.
    """
    places = []

    def replace(content: dict[str, Any]) -> dict[str, Any]:
        stored = content.get("chat_template")
        if stored is None:
            return content
        places.append(stored)
        if isinstance(stored, list):
            others = [entry for entry in stored if entry.get("name") != "default"]
            return content | {"chat_template": [{"name": "default", "template": template}, *others]}
        return content | {"chat_template": template}

    _edit(target / "chat_template.json", replace)
    places.clear()  # tokenizers do not read that file
    _edit(target / "tokenizer_config.json", replace)
    alone = target / "chat_template.jinja"
    if alone.exists() or not places:
        alone.write_text(template, encoding="utf-8")
