"""The model card of an exported network: README.md, with the front matter that the hub reads.

It says what the network was made from, and nothing of the machine: a path is given by its last
part. Equal runs give equal cards.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from gad_jax import __version__
from gad_jax.base.redaction import markdown_code, redact
from gad_jax.data.sources import mixture
from gad_jax.models import provenance
from gad_jax.settings import fields
from gad_jax.settings.config import CAN_CHANGE, STAGES, Config
from gad_jax.training import card_use, origins
from gad_jax.training.trackers import sending

PAPER = "2511.10643"
METHODS = {
    "seqkd": "sequence-level knowledge distillation: cross-entropy on the teacher's text",
    "warmup": "the warm-up of generative adversarial distillation: cross-entropy on the teacher's "
    "text, while the discriminator learns",
    "offpolicy": "the discriminator alone, on samples of a frozen student",
    "gad": "generative adversarial distillation: GRPO on the discriminator's score",
    "dpo": "direct preference optimisation of the teacher's text over other answers",
    "rejection": "rejection sampling: cross-entropy on the best of the student's own samples by "
    "the discriminator",
    "custom": "a custom stage, whose step is a function of the run's author",
}
PAPERS = {"dpo": "2305.18290", "rejection": "2304.06767", "custom": ""}
"""Those of the stages that are not of `PAPER`; empty: there is none."""
_NAMES = ("student.path", "discriminator.path", "data.train", "data.heldout")
_FILES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst")
_MEASURES = {
    "evaluation/rouge_l": "ROUGE-L with the teacher's answer",
    "evaluation/length": "mean length, tokens",
    "evaluation/length_ratio": "length, of the teacher's",
    "evaluation/cut_share": "share of answers that were cut",
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a card is about: one network of a run, at one step.

    `model` is the directory that the network started from; `rows` is None where it is not known.
    """

    part: str
    config: Config
    run: Path
    model: Path
    step: int
    stage: str
    data: str
    rows: int | None
    end_token: str
    family: str
    adapter: bool = False
    """Whether the directory has the network's adapters alone, for PEFT."""

    @property
    def name(self) -> str:
        """The model that the network started from, as in the settings."""
        student = self.config.student.path
        return student if self.part == "student" else self.config.discriminator.path or student


def write(subject: Subject) -> str:
    """Returns README.md."""
    from huggingface_hub import ModelCard  # here: half a second, and no start needs it

    parts = [_summary(subject), _made(subject), _settings(subject)]
    parts += [_result(subject)] if subject.part == "student" else []
    parts += [card_use.how_to_load(subject), _licence(subject), card_use.citation(subject)]
    text = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{_front_matter(subject)}\n---\n\n{text}\n"))


def _front_matter(subject: Subject) -> str:
    from huggingface_hub import ModelCardData

    student = subject.part == "student"
    licence = provenance.licence(subject.name, subject.model)
    names, _ = mixture.split(subject.config.data.train, "--data.train")
    found = [name.partition(":")[0] for name in names if _is_hub_name(name)]
    base = provenance.hub_id(subject.name, subject.model)
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if subject.adapter else "finetune") if base else None,
        license=licence.get("license", "unknown"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        datasets=found or None,
        library_name="peft" if subject.adapter else "transformers",
        pipeline_tag="text-generation" if student else "text-classification",
        tags=["gad", "distillation", *([] if student else ["reward-model"]), f"arxiv:{PAPER}"],
    )
    return data.to_yaml().strip()


def _summary(subject: Subject) -> str:
    base = _public(subject.name)
    if subject.part == "student":
        title = f"# {base}, distilled"
        what = f"A student of a teacher's text. It started from {markdown_code(base)}."
    else:
        title = f"# {base}, discriminator"
        what = (
            "The discriminator of a distillation, as a reward model with one label. A higher "
            f"score means: more like the teacher. It started from {markdown_code(base)}."
        )
    if subject.adapter:
        title += ": adapters"
        what += " This directory has its adapters (LoRA) alone, for PEFT."
    return f"{title}\n\n{what} Made with gad-jax {__version__}."


def _made(subject: Subject) -> str:
    names, shares = mixture.split(subject.config.data.train, "--data.train")
    shown = [
        markdown_code(_public(name)) + (f" ({share:g})" if shares else "")
        for name, share in zip(names, shares or [0.0] * len(names), strict=True)
    ]
    rows = "not recorded" if subject.rows is None else f"{subject.rows}"
    paper = PAPERS.get(subject.stage, PAPER)
    table = {
        "method": METHODS[subject.stage]
        + (f" ([paper](https://arxiv.org/abs/{paper}))" if paper else ""),
        "stage, step": f"{subject.stage}, {subject.step}",
        "stages of the run": ", ".join(subject.config.stages),
        "teacher data": ", ".join(shown),
        "prompts": rows,
        "fingerprint of data and tokenizer": markdown_code(subject.data),
    }
    if weights := _weights(subject):
        table["weights"] = weights
    if place := origins.public(subject.run, subject.part):
        table["weights taken from"] = place
    if links := _links(subject.run):
        table["tracked at"] = links
    lines = [f"| {name} | {value} |" for name, value in table.items()]
    return "\n".join(["## How it was made", "", "| | |", "|---|---|", *lines])


def _links(run: Path) -> str:
    """Returns the pages of the run in trackers; those of this machine are of no use to others."""
    links = {name: record.link for name, record in sending.read(run).items()}
    ours = re.compile(r"https?://(localhost|127\.|0\.0\.0\.0|\[)")
    return ", ".join(
        f"[{name}]({redact(link)})"
        for name, link in links.items()
        if link.startswith("http") and not ours.match(link)
    )


def _weights(subject: Subject) -> str:
    """Returns what the weights of a network with adapters are; "" of one that was trained whole."""
    lora = subject.config.lora
    rank = lora.rank_of("generator" if subject.part == "student" else "discriminator")
    if not rank:
        return ""
    if subject.adapter:
        return f"adapters (LoRA) of rank {rank}, alpha {lora.alpha:g}"
    merged = f"a frozen base with adapters (LoRA) of rank {rank} merged into it"
    if not lora.is_quantised:
        return merged
    return (
        f"{merged}; the base was quantised ({lora.base_dtype}), and these are its dequantised "
        "weights: they differ from those of the original by the error of quantising"
    )


def settings(config: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the settings of the training that are not the defaults: (value, default) by name.

    Those of stages that the run does not have are left out.
    """
    others = tuple(f"{stage}." for stage in STAGES if stage not in config.stages)
    pairs = zip(fields.leaves(Config, config), fields.leaves(Config, Config()), strict=True)
    return {
        ours.path: (ours.value, default.value)
        for ours, default in pairs
        if ours.value != default.value and not ours.path.startswith((*CAN_CHANGE, *_NAMES, *others))
    }


def _settings(subject: Subject) -> str:
    changed = settings(subject.config)
    if not changed:
        return "All settings of the training are the defaults."
    lines = [
        f"| {name} | {markdown_code(fields.show(value))} | {markdown_code(fields.show(default))} |"
        for name, (value, default) in changed.items()
    ]
    return "\n".join(
        [
            *("Settings that differ from the defaults:", ""),
            *("| setting | value | default |", "|---|---|---|"),
            *lines,
        ]
    )


def _result(subject: Subject) -> str:
    """The held-out evaluation of this step, next to the one before training."""
    if not subject.config.data.heldout:
        return ""
    found = []
    for path in sorted((subject.run / "evaluations").glob("*.json")):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            found.append((stored["step"], stored["metrics"], len(stored["examples"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged file is the evaluation's concern
    here = [entry for entry in found if entry[0] == subject.step]
    if not here:
        return ""
    start = [entry for entry in found if entry[0] == 0 and subject.step]
    _, metrics, prompts = here[-1]
    names = [name for name in _MEASURES if name in metrics]
    shown = [*(entry[1] for entry in start[:1]), metrics]
    lines = [
        f"| {_MEASURES[name]} | "
        + " | ".join(f"{each.get(name, 0.0):.3f}" for each in shown)
        + " |"
        for name in names
    ]
    heads = [*(["before training"] if start else []), "this student"]
    held_out = subject.config.data.heldout
    kept_back = re.fullmatch(r"[\d.]+%?", held_out)
    rows = "the teacher data, kept back" if kept_back else markdown_code(_public(held_out))
    return "\n".join(
        [
            *("## Held-out result", "", f"Greedy answers to {prompts} prompts of {rows}.", ""),
            *(f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"),
            *lines,
        ]
    )


def _licence(subject: Subject) -> str:
    licence = provenance.licence(subject.name, subject.model)
    stated = licence.get("license_name") or licence.get("license") or "not stated by the source"
    return (
        f"## Licence\n\nLicence of the weights that the training started from: {stated}. The "
        "teacher's own terms may limit what a student of its text is used for."
    )


def _is_hub_name(name: str) -> bool:
    known = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?", name)
    return bool(known) and not name.endswith(_FILES) and not Path(name).exists()


def _public(name: str) -> str:
    """Returns a name of the hub or of a built-in, else the last part of a path."""
    shown = name if _is_hub_name(name) else Path(name).expanduser().name or name
    return " ".join(shown.split())
