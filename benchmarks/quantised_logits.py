"""What a quantised base changes in a model's next-token distribution, against float32.

    python benchmarks/quantised_logits.py [--model smollm2-135m-instruct] [--texts 16]

Prints a line per `--lora.base_dtype`: the bits per number of the layers' kernels, the largest and
the rms error of the logits (of each token less their mean, which no probability depends on), the
KL divergence per token, and the share of tokens whose most likely next token is the same. The texts
are bundled rows, prompt and answer, of up to 128 tokens.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.data import sources
from gad_jax.data.chat import Chat
from gad_jax.models import decoder, source, weights
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.types import Params, Segments

LONGEST = 128
_logits = jax.jit(decoder.logits, static_argnums=0)


def texts(chat: Chat, count: int) -> list[np.ndarray]:
    """Returns the tokens of bundled rows, prompt and answer."""
    found = []
    for _, row in itertools.islice(sources.records("bundled", "train", True), count):
        answer = {"role": "assistant", "content": row["teacher_response"]}
        text = chat.tokenizer.apply_chat_template([*row["messages"], answer], tokenize=False)
        tokens = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(np.asarray(tokens[:LONGEST], np.int32))
    return found


def logits(config: DecoderConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    """Returns a text's logits [tokens, vocabulary], less their mean."""
    row = np.zeros((1, LONGEST), np.int32)
    row[0, : len(tokens)] = tokens
    own = jnp.asarray(np.arange(LONGEST)[None] < len(tokens), jnp.int32)
    places = jnp.arange(LONGEST)[None]
    found = _logits(config, params, jnp.asarray(row), places, Segments(own, own))
    found = np.asarray(found, np.float64)[0, : len(tokens)]
    return found - found.mean(axis=-1, keepdims=True)


def kernels(params: Params) -> Iterator[Any]:
    """Yields the parts of the layers' kernels."""
    for part in params["layers"].values():
        yield from jax.tree.leaves(part.get("kernel", {}))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--texts", type=int, default=16)
    chosen = parser.parse_args()
    directory = source.resolve(chosen.model)
    config, params = weights.load(directory)
    numbers = sum(leaf.size for leaf in kernels(params))
    some = texts(Chat.load(directory), chosen.texts)
    wanted = [logits(config, params, each) for each in some]
    print(f"{chosen.model}: {sum(map(len, some)):,} tokens; {numbers / 1e6:.1f} million of kernels")
    spread = np.concatenate([each.ravel() for each in wanted]).std()
    print(f"the logits' standard deviation is {spread:.3f}")
    del params
    for kind in ("bfloat16", "int8", "nf4"):
        quantised = kind != "bfloat16"
        network = config
        if quantised:
            network = dataclasses.replace(config, lora=Lora(1, 1.0, ()), quantisation=kind)
        dtype = jnp.float32 if quantised else jnp.bfloat16
        _, small = weights.load(directory, dtype=dtype, quantisation=kind if quantised else "none")
        found = [logits(network, small, each) for each in some]
        stored = 8 * sum(leaf.nbytes for leaf in kernels(small)) / numbers
        print(f"{kind:9} {stored:5.2f} bits  {compared(wanted, found)}", flush=True)


def compared(wanted: list[np.ndarray], found: list[np.ndarray]) -> str:
    """Returns the figures of logits against those of float32."""
    a, b = np.concatenate(wanted), np.concatenate(found)
    p, q = (np.asarray(jax.nn.log_softmax(jnp.asarray(each), axis=-1)) for each in (a, b))
    kl = np.mean(np.sum(np.exp(p) * (p - q), axis=-1))
    same = np.mean(a.argmax(axis=-1) == b.argmax(axis=-1))
    rms = np.sqrt(np.mean((a - b) ** 2))
    return (
        f"logit error: max {np.abs(a - b).max():.3f}, rms {rms:.4f}  "
        f"KL {kl:.5f}  same first choice {100 * same:.1f} %"
    )


if __name__ == "__main__":
    main()
