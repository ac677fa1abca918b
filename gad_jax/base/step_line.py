"""The line of a training step: which metrics it shows, and those that fit a width."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

# A part is shown if the step has all metrics that it names.
LINE = (
    "G loss {generator/loss:.4f}",
    "D loss {discriminator/loss:.4f}",
    "D accuracy {discriminator/accuracy:.2f}",
    "margin {discriminator/margin:+.2f}",
    "DPO accuracy {dpo/accuracy:.2f}",
    "margin {dpo/margin:+.3f}",
    "reward {reward/mean:+.2f} ± {reward/std:.2f}",
    "length {response/length:.0f}",
    "{response/length_ratio:.2f}× teacher",
    "cut {response/cut_share:.0%}",
    "KL {kl/reference:.4f}",
    "G grad {generator/gradient_norm:.3g}",
    "D grad {discriminator/gradient_norm:.3g}",
    "{tokens_per_second/rollout:,.0f} sampled tokens/s",
    "{tokens_per_second/update:,.0f} trained tokens/s",
    "{seconds/step:.1f} s/step",
)
# What is shown where LINE is too wide, the most important first: those that fit. The loss of G says
# little in GAD, whose steps have a reward.
SHORT = (
    "reward {reward/mean:+.2f}",
    "{response/length_ratio:.2f}× teacher",
    "D acc {discriminator/accuracy:.2f}",
    "DPO acc {dpo/accuracy:.2f}",
    "{seconds/step:.1f} s",
    "G {generator/loss:.3f}",
    "cut {response/cut_share:.0%}",
    "KL {kl/reference:.3f}",
    "D {discriminator/loss:.3f}",
)


def step_parts(metrics: Mapping[str, float]) -> list[str]:
    """Returns the parts of a step's line whose metrics are all given."""
    return _parts(LINE, metrics)


def reward_terms(names: Iterable[str]) -> list[str]:
    """Returns the terms of a mixed reward, of the names of metrics. The mix itself says nothing
    where each term is normalised: its mean is 0."""
    found = (re.fullmatch("reward/(.+)/mean", name) for name in names)
    return [match[1] for match in found if match]


def _parts(templates: Sequence[str], metrics: Mapping[str, float]) -> list[str]:
    parts = []
    terms = reward_terms(metrics)
    for template in templates:
        if terms and template.startswith("reward "):
            parts += [f"{name} {metrics[f'reward/{name}/mean']:+.3g}" for name in terms]
            continue
        try:
            parts.append(template.format_map(metrics))
        except KeyError:
            continue
    return parts


def fitting_parts(metrics: Mapping[str, float], width: int) -> list[str]:
    """Returns the parts of a step's line that fit the width, with two blanks between them."""
    parts = step_parts(metrics)
    if len("  ".join(parts)) <= width:
        return parts
    kept: list[str] = []
    for part in _parts(SHORT, metrics):
        if len("  ".join([*kept, part])) <= width:
            kept.append(part)
    return kept


def format_seconds(seconds: float) -> str:
    """Returns a duration as '1:02:03'; '–' for one that is not finite."""
    return "–" if not math.isfinite(seconds) else str(timedelta(seconds=round(seconds)))
