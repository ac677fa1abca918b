"""Random prompts and responses to pack."""

import numpy as np

Texts = list[list[np.ndarray]]


def array(*ids: int) -> np.ndarray:
    return np.asarray(ids, np.int32)


def draw(
    rng: np.random.Generator, prompts: int, samples: int, longest: tuple[int, int] = (9, 12)
) -> tuple[list[np.ndarray], Texts, Texts]:
    """Returns prompts, responses and log-probs; a response may be empty, ids start at 1."""
    questions = [rng.integers(1, 99, rng.integers(1, longest[0] + 1)) for _ in range(prompts)]
    answers = [
        [rng.integers(1, 99, rng.integers(0, longest[1] + 1)) for _ in range(samples)]
        for _ in range(prompts)
    ]
    logprobs = [[-rng.random(len(a)).astype(np.float32) - 0.1 for a in group] for group in answers]
    return questions, answers, logprobs
