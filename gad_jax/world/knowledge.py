"""What a student knows of the small world, apart from the style that it chooses.

A student that answers in a style which is beyond it is wrong, however well it computes. Here its
last result is judged alone, a style is chosen for it, or one of several samples is: by their
majority, by whether they contradict themselves, or by a discriminator. No choice uses the oracle.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

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
    the chosen samples}; `ordered`: what `ordered` returns, if that is a number. Without `scorer`
    there is neither a choice nor an order by it.
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
    verdicts = [
        [language.judge(question, text) for text in group]
        for question, group in zip(asked, groups, strict=True)
    ]
    choices = {"majority": [majority(g) for g in groups], "agrees": [consistent(g) for g in groups]}
    if scorer is not None:
        scored = scores(scorer, rows, samples)
        choices["discriminator"] = scored.argmax(axis=1).tolist()
        order = ordered(scored, verdicts)
        found |= {} if math.isnan(order) else {"ordered": order}
    found["chosen"] = {"first": _share(each[0].valid for each in verdicts)} | {
        name: _share(each[place].valid for each, place in zip(verdicts, places, strict=True))
        for name, places in choices.items()
    }
    return found


def sample(responder: Responder, rows: Sequence[Row]) -> list[list[Answer]]:
    """Returns the responder's samples for each row."""
    prompts = responder.encode([row.messages for row in rows])
    return responder.answers(prompts, range(len(rows)))


def scores(
    scorer: Scorer, rows: Sequence[Row], groups: Sequence[Sequence[Answer]]
) -> Float[np.ndarray, "R N"]:
    """Returns the score of each of the N samples to each of the R rows."""
    pairs = [
        (row.messages, answer) for row, group in zip(rows, groups, strict=True) for answer in group
    ]
    flat = scorer(
        [messages for messages, _ in pairs],
        [answer.text for _, answer in pairs],
        [answer.finished for _, answer in pairs],
    )
    return np.reshape(flat, (len(rows), -1))


def ordered(
    scored: Float[np.ndarray, "R N"], verdicts: Sequence[Sequence[language.Verdict]]
) -> float:
    """Returns the share of pairs of a right and a wrong sample that the scores order rightly.

    Both samples are of one row and in one style: else a scorer that likes a style would seem to
    know what is right. Equal scores count a half. NaN if there is no such pair.
    """
    return _share(
        (np.sign(row[first] - row[second]) + 1) / 2
        for row, group in zip(scored, verdicts, strict=True)
        for (first, one), (second, other) in itertools.permutations(enumerate(group), 2)
        if one.valid and not other.valid and one.style == other.style
    )


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
    found = [*values]
    return float(np.mean(found)) if found else math.nan
