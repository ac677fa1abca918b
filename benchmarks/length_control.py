"""Our length-controlled win rate next to the published one of AlpacaEval 2.

    python benchmarks/length_control.py judgements.jsonl.gz
    python benchmarks/length_control.py judgements.jsonl.gz --tune

Each line of the file, which may be compressed with gzip, is one model: `model`, `preference` (one
per prompt, in [0, 1]), `length` and `baseline_length` in characters, `published_win_rate` and
`published_length_controlled` in percent. With --tune the constants are chosen on random halves
of the models and checked on the others.
"""

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from gad_jax.metrics.length_control import Prior, length_controlled, predict

Model = dict[str, Any]
SPLITS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="the models' judgements")
    parser.add_argument("--tune", action="store_true", help="choose the constants on random halves")
    given = parser.parse_args()
    models = read(given.path)
    if given.tune:
        tune_on_halves(models)
    else:
        compare(models)


def read(path: Path) -> list[Model]:
    """Returns the models of a file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def compare(models: Sequence[Model]) -> None:
    """Prints a table of the models, and the errors."""
    print("| model | prompts | win rate | published | ours | error |")
    print("|---|---|---|---|---|---|")
    errors, inside = [], 0
    for model in models:
        published = model["published_length_controlled"]
        found = length_controlled(*_columns(model)).percent()
        errors.append(found.value - published)
        inside += found.low <= published <= found.high
        raw = f"{len(model['preference'])} | {100 * np.mean(model['preference']):.1f}"
        print(f"| {model['model']} | {raw} | {published:.1f} | {found} | {errors[-1]:+.2f} |")
    print(f"\n{_summary(errors)}; published value inside our interval: {inside} of {len(models)}")


def tune_on_halves(models: Sequence[Model]) -> None:
    """Prints the constants that random halves of the models choose, and the errors on the rest."""
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(models))
        for part in (0, 1):
            chosen = tune([models[n] for n in order[part::2]])
            errors = _errors([models[n] for n in order[1 - part :: 2]], chosen)
            print(f"split {split}.{part}: {_shown(chosen)}; on the others: {_summary(errors)}")
    chosen = tune(models)
    print(f"all models: {_shown(chosen)}; on the same: {_summary(_errors(models, chosen))}")


def tune(models: Sequence[Model]) -> Prior:
    """Returns the slope and difficulty with the least Huber loss, at the weight of `Prior`.

    The loss turns linear at 1 point: published values of models with missing prompts differ from
    what their regression gives.
    """
    weight = Prior().weight

    def loss(point: Sequence[float]) -> float:
        size = np.abs(_errors(models, Prior(point[0], weight, point[1])))
        return float(np.mean(np.where(size < 1, size**2 / 2, size - 0.5)))

    start = (1.5, -0.3)
    options = {"xatol": 0.02, "fatol": 1e-3, "maxiter": 60}
    found = optimize.minimize(loss, start, method="Nelder-Mead", options=options)
    return Prior(float(found.x[0]), weight, float(found.x[1]))


def _errors(models: Sequence[Model], prior: Prior) -> np.ndarray:
    return np.asarray(
        [
            100 * predict(*_columns(model), prior) - model["published_length_controlled"]
            for model in models
        ]
    )


def _columns(model: Model) -> tuple[list[float], list[float], list[float]]:
    return model["preference"], model["length"], model["baseline_length"]


def _shown(prior: Prior) -> str:
    return f"slope {prior.slope:.2f}, difficulty {prior.difficulty:.2f}"


def _summary(errors: Sequence[float] | np.ndarray) -> str:
    size = np.abs(errors)
    return (
        f"{len(size)} models, mean error {np.mean(errors):+.2f}, mean absolute {size.mean():.2f}, "
        f"worst {size.max():.2f} points"
    )


if __name__ == "__main__":
    main()
