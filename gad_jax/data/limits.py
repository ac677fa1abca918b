"""Limits of prompts and responses that fit the data, and how much of the data a limit costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from gad_jax.base.errors import UserError
from gad_jax.data.pipeline import Encoded

HELD = 0.99
"""The share of the teacher's responses that a limit taken from the data holds."""

WARN = 0.1
"""From this share on, what a limit costs is said."""

_UNIT = 16  # so that a few more rows do not change the limit, and with it the compiled programs


@dataclass(frozen=True)
class Limits:
    """Most tokens of a prompt and of a response."""

    prompt: int
    response: int


@dataclass(frozen=True)
class Stops:
    """The shares of dropped prompts and cut responses from which on a run stops; 1: never."""

    dropped: float
    cut: float


def choose(files: Sequence[Encoded], given: Limits, longest_prompt: int, positions: int) -> Limits:
    """Returns the given limits, those that are 0 taken from the data.

    A prompt may then be as long as the longest one, at most `longest_prompt`. A response may be as
    long as 99 % of the teacher's and the rejected ones. Both together fit the `positions` of the
    networks: where they would not, the response gets what the prompt leaves, but at least half.
    """
    prompts = np.concatenate([file.prompts.lengths for file in files])
    responses = np.concatenate(
        [each.lengths for file in files for each in (file.responses, file.rejected)]
    )
    prompt = given.prompt or min(_rounded(int(prompts.max(initial=1))), longest_prompt)
    response = given.response or holding(responses)
    if not given.response:
        most = positions - prompt if given.prompt else max(positions - prompt, positions // 2)
        response = max(min(response, most), 1)
    if not given.prompt:
        prompt = max(min(prompt, positions - response), 1)
    return Limits(prompt, response)


def holding(lengths: Int64[np.ndarray, " _"]) -> int:
    """Returns a limit that 99 % of the lengths keep, rounded up to a multiple of 16."""
    return _rounded(int(np.quantile(lengths, HELD, method="inverted_cdf"))) if len(lengths) else 1


@dataclass(frozen=True)
class Rule:
    """What happens to sequences over a limit, and the settings that decide it."""

    things: str
    fate: str
    setting: str
    stop_setting: str


PROMPTS = Rule("prompts", "dropped", "data.max_prompt_tokens", "data.stop_at_dropped_share")
RESPONSES = Rule("teacher responses", "cut", "rollout.max_new_tokens", "data.stop_at_cut_share")
REJECTED = replace(RESPONSES, things="rejected responses")


def check(file: Encoded, limits: Limits, stops: Stops, positions: int) -> list[str]:
    """Returns what the limits cost: a sentence for each kind that loses a tenth or more.

    Raises UserError where a share reaches its stop. The sentence names the setting, and the value
    that holds 99 %.
    """
    of_prompts = (PROMPTS, file.prompts.lengths, limits.prompt, limits.response, stops.dropped)
    of_responses = (RESPONSES, file.responses.lengths, limits.response, limits.prompt, stops.cut)
    found = []
    of_rejected = (REJECTED, file.rejected.lengths, *of_responses[2:])
    for rule, lengths, limit, other, stop in (of_prompts, of_responses, of_rejected):
        count = int(np.sum(lengths > limit))
        share = count / max(len(lengths), 1)
        if share < WARN:
            continue
        stopping = share >= stop and stop < 1
        sentence = (
            f"{file.source.name}: {count} of {len(lengths)} {rule.things} ({share:.0%}) are longer "
            f"than --{rule.setting}={limit} and {'would be' if stopping else 'are'} {rule.fate}; "
            f"{_advice(rule, holding(lengths), positions - other, positions)}"
        )
        if stopping:
            raise UserError(f"{sentence}, or --{rule.stop_setting}=1 trains all the same")
        found.append(sentence)
    return found


def _advice(rule: Rule, needed: int, room: int, positions: int) -> str:
    advice = f"--{rule.setting}={needed} holds {HELD:.0%} of them"
    if needed <= room:
        return advice
    return f"{advice}, which needs a student with more than {positions} positions or shorter rows"


def _rounded(length: int) -> int:
    return -(-length // _UNIT) * _UNIT
