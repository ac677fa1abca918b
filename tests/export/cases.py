"""Writes the exports that `open_in_transformers.py` opens, of every family, next to their sources.

python -m tests.export.cases ROOT
"""

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer

from gad_jax.data.chat import Chat
from gad_jax.models import decoder, weights, writing
from gad_jax.models.carried import Carried
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params, Segments
from tests.models.record_reference import NAMES, write_variant

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}


def edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrites a JSON file."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))), encoding="utf-8")


def saved_by_transformers_5(source: Path) -> None:
    """Gives config and tokenizer the form in which transformers 5 writes them."""

    def change(hf: dict[str, Any]) -> dict[str, Any]:
        rope = {"rope_type": "default"} | (hf.pop("rope_scaling", None) or {})
        hf["rope_parameters"] = rope | {"rope_theta": hf.pop("rope_theta")}
        hf["dtype"] = hf.pop("torch_dtype")
        return hf

    edit(source / "config.json", change)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(source)
    written = json.loads((source / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "TokenizersBackend"
    assert written["extra_special_tokens"] == ["<|im_start|>"]


def padded_with_its_end(source: Path) -> None:
    """Gives the tokenizer an end token as pad token, as SmolLM2 has it, and sampling defaults."""
    edit(source / "tokenizer_config.json", lambda hf: hf | {"pad_token": hf["eos_token"]})
    edit(source / "generation_config.json", lambda hf: hf | SAMPLING)


def sources(root: Path) -> dict[str, Path]:
    """Returns directories of models by the names of their cases: all families, all kinds."""
    found = {name: root / name / "source" for name in NAMES}
    for name, source in found.items():
        write_variant(source, name)
        if name not in ("llama", "llama3-rope"):
            padded_with_its_end(source)
    return found


def discriminator(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    """Returns a network with a random score head."""
    params = {name: part for name, part in params.items() if name != "head"}
    params["score"] = decoder.init_score(config, jax.random.key(1), 0.3)
    params["score"]["bias"] = jnp.asarray([0.375])
    return dataclasses.replace(config, head="score"), params


def scores(config: DecoderConfig, params: Params, rows: list[list[int]]) -> list[float]:
    """Returns the discriminator's score at the end of each row."""
    score = jax.jit(functools.partial(decoder.score, config))
    found = []
    for row in rows:
        ids, one = jnp.asarray([row], jnp.int32), jnp.ones((1, len(row)), jnp.int32)
        positions = jnp.arange(len(row), dtype=jnp.int32)[None]
        found.append(float(score(params, ids, positions, Segments(one, one))[0, -1]))
    return found


def write(source: Path, given: Path | None = None) -> None:
    """Writes `student` and `discriminator` next to a source, from `given` if that is another."""
    given = given or source
    config, params = weights.load(given)
    chat = Chat.load(given)
    carried = Carried(given, chat.tokenizer, chat.end_tokens, given)
    writing.save(source.with_name("student"), config, params, carried)
    judge, judged = discriminator(config, params)
    target = source.with_name("discriminator")
    writing.save(target, judge, judged, carried)
    random = np.random.default_rng(0)
    rows = [[*random.integers(0, 200, n).tolist(), chat.end_token] for n in (8, 22, 3, 15)]
    expected = {"rows": rows, "scores": scores(judge, judged, rows), "end_tokens": chat.end_tokens}
    (target / "scores.json").write_text(json.dumps(expected))


def main(root: Path) -> None:
    """Writes all cases."""
    shutil.rmtree(root, ignore_errors=True)
    found = sources(root)
    for source in found.values():
        write(source)
    # transformers 4 reads RoPE's base from the older form alone: that of the source is compared
    old = found["llama3-rope"]
    source = Path(shutil.copytree(old, root / "saved-by-5" / "source"))
    newer = Path(shutil.copytree(old, root / "saved-by-5" / "newer"))
    saved_by_transformers_5(newer)
    write(source, newer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
