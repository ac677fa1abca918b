"""What a student knows of the small world, apart from the style that it chooses.

A student that answers in a style which is beyond it is wrong, however well it computes. Here its
last result is judged alone, a style is chosen for it, or one of several samples is: by their
majority, by whether they contradict themselves, or by a discriminator. No choice uses the oracle.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gad_jax.data.sources import Row
from gad_jax.metrics.scoring import Scorer
from gad_jax.rollout.answering import Answer, Responder
from gad_jax.world import language

CHOICES = 8
"""Samples at temperature 1 of which one is chosen."""

Answering = Callable[[float, int], Responder]
"""(temperature, samples) → what answers so."""


def measure(rows: Sequence[Row], responder: Answering, scorer: Scorer | None) -> dict[str, Any]:
    """Returns shares of the instructions, in [0, 1].

    `last_result`: greedy answers that end in the right result, in any style; `given`: {style:
    answers that are right when their first word is given}; `chosen`: {choice: right answers among
    the chosen samples}. Without `scorer` there is no choice by it.
    """
    asked = [row.messages[-1]["content"] for row in rows]
    greedy, sampling = responder(0.0, 1), responder(1.0, CHOICES)
    prompts = greedy.encode([row.messages for row in rows])
    plain = [group[0].text for group in greedy.answers(prompts, range(len(rows)))]
    found: dict[str, Any] = {
        "last_result": _share(
            language.stated(text)[0] == language.result(question)
            for question, text in zip(asked, plain, strict=True)
        ),
        "given": {style: _given(greedy, asked, prompts, style) for style in language.STYLES},
    }
    samples = sample(sampling, rows)
    groups = [[answer.text for answer in group] for group in samples]
    choices = {"majority": [majority(g) for g in groups], "agrees": [consistent(g) for g in groups]}
    if scorer is not None:
        choices["discriminator"] = best(scorer, rows, samples)
    right = [
        [language.judge(question, text).valid for text in group]
        for question, group in zip(asked, groups, strict=True)
    ]
    found["chosen"] = {"first": _share(each[0] for each in right)} | {
        name: _share(each[place] for each, place in zip(right, places, strict=True))
        for name, places in choices.items()
    }
    return found


def sample(responder: Responder, rows: Sequence[Row]) -> list[list[Answer]]:
    """Returns the responder's samples for each row."""
    prompts = responder.encode([row.messages for row in rows])
    return responder.answers(prompts, range(len(rows)))


def best(scorer: Scorer, rows: Sequence[Row], groups: Sequence[Sequence[Answer]]) -> list[int]:
    """Returns the place of the sample with the highest score, for each row (best of N)."""
    pairs = [
        (row.messages, answer) for row, group in zip(rows, groups, strict=True) for answer in group
    ]
    scores = scorer(
        [messages for messages, _ in pairs],
        [answer.text for _, answer in pairs],
        [answer.finished for _, answer in pairs],
    )
    return np.argmax(np.reshape(scores, (len(rows), -1)), axis=1).tolist()


def majority(texts: Sequence[str]) -> int:
    """Returns the place of the first sample whose last result is the most frequent one."""
    results = [language.stated(text)[0] for text in texts]
    return results.index(Counter(results).most_common(1)[0][0])


def consistent(texts: Sequence[str]) -> int:
    """Returns the place of the first sample that does not contradict itself; of the first if all
    do."""
    return next((place for place, text in enumerate(texts) if language.agrees(text)), 0)


def _given(
    greedy: Responder, asked: Sequence[str], prompts: Sequence[np.ndarray], style: str
) -> float:
    """Returns the share of right greedy answers that continue the style's first word."""
    openings = [language.opening(question, style) for question in asked]
    begun = [
        np.concatenate([prompt, greedy.chat.encode_response(opening, False)]).astype(np.int32)
        for prompt, opening in zip(prompts, openings, strict=True)
    ]
    groups = greedy.answers(begun, range(len(begun)))
    return _share(
        language.judge(question, f"{opening} {group[0].text}").valid
        for question, opening, group in zip(asked, openings, groups, strict=True)
    )


def _share(values: Any) -> float:
    return float(np.mean([*values]))
