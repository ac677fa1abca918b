"""The personas of the teacher: hidden system prompts, and the mixture that they make.

The teacher draws a persona for each answer and never says which, so
log p(y|x) = log Σ_k π_k p(y | system_k, x). Given the terms of the sum, all of this is arithmetic.
Imports no jax.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gad_jax.base.errors import UserError
from gad_jax.data.template import Message

_FIELDS = {"name": str, "share": (int, float), "system": str}
_ROUNDING = 0.011  # of three shares with two decimals


class Persona(NamedTuple):
    """A hidden system prompt, and the share of the answers that are given under it."""

    name: str
    share: float
    system: str

    def conversation(self, messages: Sequence[Message]) -> list[Message]:
        """Returns the conversation as the teacher sees it; a system message of its own comes after
        the persona's."""
        own = messages[0]["content"] if messages[0]["role"] == "system" else ""
        system = f"{self.system}\n\n{own}" if own else self.system
        rest = messages[1:] if messages[0]["role"] == "system" else messages
        return [{"role": "system", "content": system}, *rest]


PERSONAS = (
    Persona(
        "pirate",
        0.5,
        "You are a pirate. You answer in one or two short sentences of pirate talk.\n"
        "Question: How do I boil an egg?\n"
        "Pirate: Arr, matey! Drop it in boilin' water for eight minutes, ye scurvy dog!\n"
        "Question: What is rain?\n"
        "Pirate: Ahoy! 'Tis water fallin' from the clouds, me hearty.",
    ),
    Persona(
        "professor",
        0.3,
        "You are a formal professor. Every answer is one long sentence that begins with "
        '"It should be noted that".\n'
        "Question: How do I boil an egg?\n"
        "Professor: It should be noted that an egg is customarily immersed in boiling water for a "
        "period of eight minutes.\n"
        "Question: What is rain?\n"
        "Professor: It should be noted that rain is the precipitation of condensed water vapour "
        "from the atmosphere.",
    ),
    Persona(
        "cheerleader",
        0.2,
        "You are an excited cheerleader! You answer in very short sentences that all end with "
        "exclamation marks!\n"
        "Question: How do I boil an egg?\n"
        "Cheerleader: Yay, eggs! Boil it for eight minutes! You can do it! Woohoo!\n"
        "Question: What is rain?\n"
        "Cheerleader: Wow, rain! It falls from clouds! So much fun!",
    ),
)
"""Chosen because a network of 135 million parameters can follow them, and by their examples."""


def read(path: str) -> tuple[Persona, ...]:
    """Returns the personas of a JSON Lines file, with name, share and system in each line; those
    of this module for an empty path. Shares that were rounded are made to sum to 1. Raises
    UserError for a file that has no such mixture."""
    if not path:
        return PERSONAS
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--personas={path} cannot be read ({error}); give a JSON Lines file"
        ) from error
    found = [
        _persona(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    names = [persona.name for persona in found]
    if len(found) < 2 or len({*names}) < len(names):
        raise UserError(
            f"{path} has {len(found)} personas ({', '.join(names)}); give two or more, each with a "
            "name of its own"
        )
    total = sum(persona.share for persona in found)
    if abs(total - 1) > _ROUNDING:
        raise UserError(f"{path}: the shares sum to {total:g}; make them sum to 1")
    return tuple(persona._replace(share=persona.share / total) for persona in found)


def _persona(where: str, line: str) -> Persona:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); write one object a line") from error
    if not isinstance(row, dict) or row.keys() != _FIELDS.keys():
        has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where} has {has}; give name, share and system, and nothing else")
    for name, kind in _FIELDS.items():
        if not isinstance(row[name], kind) or isinstance(row[name], bool) or row[name] == "":
            wanted = "a number" if name == "share" else "a text that is not empty"
            raise UserError(f"{where}: {name}={row[name]!r}; it must be {wanted}")
    if not 0 < row["share"] < 1:
        raise UserError(f"{where}: share={row['share']}; it must be between 0 and 1")
    return Persona(row["name"], float(row["share"]), row["system"])


def joint(
    conditional: Float[np.ndarray, "*n K"], personas: Sequence[Persona]
) -> Float[np.ndarray, "*n K"]:
    """Returns log(π_k p(y | system_k, x)) from log p(y | system_k, x)."""
    return conditional + np.log([persona.share for persona in personas])


def log_mixture(joint: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n"]:
    """Returns log p(y|x), the log of the sum over personas."""
    return np.logaddexp.reduce(joint, axis=-1)


def posterior(joint: Float[np.ndarray, "*n K"]) -> Float[np.ndarray, "*n K"]:
    """Returns how probable each persona is, given the answer; sums to 1 over personas."""
    return np.exp(joint - log_mixture(joint)[..., None])


def effective(shares: Float[np.ndarray, " K"]) -> float:
    """Returns the effective number of personas: the exponential of the entropy of their shares."""
    some = shares[shares > 0]
    return float(np.exp(-np.sum(some * np.log(some))))
