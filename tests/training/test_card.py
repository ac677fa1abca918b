"""The model card: what it states of a run, in the form that the hub reads."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gad_jax.settings import options
from gad_jax.settings.config import STAGES, Config
from gad_jax.training import card
from gad_jax.training.card import Subject


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    model = tmp_path / "home" / "someone" / "my-model"
    model.mkdir(parents=True)
    evaluations = tmp_path / "run" / "evaluations"
    evaluations.mkdir(parents=True)
    for label, step, score in (("before", 0, 0.125), ("after-gad", 7, 0.25), ("step-4", 4, 0.2)):
        metrics = {"evaluation/rouge_l": score, "evaluation/length": 31.0}
        content = {"label": label, "step": step, "metrics": metrics, "examples": [{}] * 5}
        (evaluations / f"{label}.json").write_text(json.dumps(content))
    rows = tmp_path / "home" / "someone" / "rows.jsonl"
    return Subject(
        part="student",
        config=with_settings(
            f"--student.path={model}",
            f"--data.train={rows}=0.7,org/answers:test=0.3",
            f"--data.heldout={rows}",
            f"--run_dir={tmp_path}/run",
            "--stage=gad",
            "--gad.steps=7",
            "--seqkd.steps=3",
            "--rollout.samples=4",
            "--checkpoint.every=3",
        ),
        run=tmp_path / "run",
        model=model,
        step=7,
        stage="gad",
        data="ab" * 32,
        rows=1234,
        end_token="<|im_end|>",
        family="llama",
    )


def with_settings(*flags: str) -> Config:
    return options.parse(Config, list(flags), program="x", description="x")


def front(text: str) -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def test_what_a_students_card_states(subject: Subject) -> None:
    text = card.write(subject)
    assert front(text) == {
        "datasets": ["org/answers"],
        "library_name": "transformers",
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["gad", "distillation", "arxiv:2511.10643"],
    }
    for said in (
        "# my-model, distilled",
        "| teacher data | `rows.jsonl` (0.7), `org/answers:test` (0.3) |",
        "| prompts | 1234 |",
        f"`{'ab' * 32}`",
        "| stage, step | gad, 7 |",
        "| gad.steps | `7` | `0` |",
        "| rollout.samples | `4` | `8` |",
        "Greedy answers to 5 prompts of `rows.jsonl`.",
        "| | before training | this student |",
        "| ROUGE-L with the teacher's answer | 0.125 | 0.250 |",
        "started from: not stated by the source.",
        "Below is an instruction",
    ):
        assert said in text, said
    # neither places nor what says nothing about the training
    for unsaid in ("someone", "home", "checkpoint.every", "run_dir", "seqkd.steps"):
        assert unsaid not in text, unsaid
    assert card.write(subject) == text


def test_what_a_discriminators_card_states(subject: Subject) -> None:
    (subject.model / "README.md").write_text("---\nlicense: gemma\n---\n")
    text = card.write(dataclasses.replace(subject, part="discriminator"))
    assert front(text)["pipeline_tag"] == "text-classification"
    assert "reward-model" in front(text)["tags"]
    assert front(text)["license"] == "gemma"
    assert "AutoModelForSequenceClassification" in text
    assert '"An apple." + "<|im_end|>"' in text
    assert "Held-out" not in text
    assert "started from: gemma." in text
    other = dataclasses.replace(
        subject,
        part="discriminator",
        config=with_settings("--student.path=a/b", "--discriminator.path=org/judge"),
    )
    text = card.write(other)
    assert front(text)["base_model"] == "org/judge"
    assert front(text)["base_model_relation"] == "finetune"
    assert "# org/judge, discriminator" in text


def test_adapters_have_a_card_for_peft(subject: Subject) -> None:
    config = with_settings("--stage=gad", "--lora.rank=4", "--student.path=org/base")
    text = card.write(dataclasses.replace(subject, config=config, adapter=True))
    found = front(text)
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")
    assert "# org/base, distilled: adapters" in text
    assert "| weights | adapters (LoRA) of rank 4, alpha 32 |" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    assert 'base = "org/base"' in code[1]
    compile(code[1], "card", "exec")


def test_the_paper_is_cited_where_its_method_was_used(subject: Subject) -> None:
    assert "@article{ye2025blackbox," in card.write(subject)
    other = dataclasses.replace(subject, config=with_settings("--stage=seqkd"), stage="seqkd")
    assert "@article" not in card.write(other)


def test_pages_of_trackers_are_linked(subject: Subject) -> None:
    links = {
        "wandb": "https://wandb.ai/me/gad-jax/runs/ab",
        "mlflow": "http://127.0.0.1:5000/#/experiments/1/runs/cd",
        "trackio": "`trackio show --project gad-jax` shows mine-1234",
    }
    records = {name: {"link": link} for name, link in links.items()}
    (subject.run / "trackers.json").write_text(json.dumps(records))
    lines = card.write(subject).splitlines()
    assert "| tracked at | [wandb](https://wandb.ai/me/gad-jax/runs/ab) |" in lines
    assert not any("127.0.0.1" in line or "mine-1234" in line for line in lines)


def test_only_an_evaluation_of_this_step_is_stated(subject: Subject) -> None:
    assert "| 0.125 | 0.200 |" in card.write(dataclasses.replace(subject, step=4))
    assert "Held-out" not in card.write(dataclasses.replace(subject, step=5))
    damaged = subject.run / "evaluations" / "step-5.json"
    for content in ("{", "[]", '{"step": 5}', "null"):
        damaged.write_text(content)
        assert "Held-out" not in card.write(dataclasses.replace(subject, step=5))
    part = with_settings("--data.heldout=5%")
    text = card.write(dataclasses.replace(subject, step=4, config=part))
    assert "Greedy answers to 5 prompts of the teacher data, kept back." in text
    without = with_settings("--data.heldout=")
    assert "Held-out" not in card.write(dataclasses.replace(subject, config=without))


def test_defaults_and_rows_that_are_not_known(subject: Subject) -> None:
    text = card.write(dataclasses.replace(subject, config=Config(), rows=None))
    assert "All settings of the training are the defaults." in text
    assert "| prompts | not recorded |" in text
    assert front(text)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front(text)["license"] == "apache-2.0"


def test_names_that_would_break_the_page(subject: Subject, tmp_path: Path) -> None:
    odd = tmp_path / "a|b`c\n---\nlicense: mit"
    text = card.write(
        dataclasses.replace(subject, config=with_settings(f"--student.path={odd}", "--stage=gad"))
    )
    assert front(text)["license"] == "unknown"
    assert "\nlicense: mit" not in text.split("---\n", 2)[2]


@pytest.mark.parametrize("family", ["llama", "olmo2", "granite"])
def test_where_transformers_has_no_classifier(subject: Subject, family: str) -> None:
    student = card.write(dataclasses.replace(subject, family=family))
    assert "transformers 4.57 and 5 open this directory." in student
    text = card.write(dataclasses.replace(subject, part="discriminator", family=family))
    said = {
        "llama": "transformers 4.57 and 5 open this directory.",
        "olmo2": "transformers 5 opens this directory; earlier ones lack the class.",
        "granite": "has no class for a sequence classifier of the family granite yet",
    }
    assert said[family] in text
    assert ("```python" in text) == (family != "granite")


def test_every_stage_has_a_method_and_a_paper(subject: Subject) -> None:
    assert {*card.METHODS} == {*STAGES}
    text = card.write(dataclasses.replace(subject, stage="dpo"))
    assert "direct preference optimisation" in text
    assert "arxiv.org/abs/2305.18290" in text


def test_weights_of_adapters_say_what_they_are(subject: Subject) -> None:
    assert "| weights |" not in card.write(subject)
    flags = ("--stage=gad", "--lora.rank=4", "--lora.discriminator_rank=0")
    config = with_settings(*flags)
    text = card.write(dataclasses.replace(subject, config=config))
    row = "| weights | a frozen base with adapters (LoRA) of rank 4 merged into it"
    assert f"{row} |" in text
    config = with_settings(*flags, "--lora.base_dtype=nf4")
    text = card.write(dataclasses.replace(subject, config=config))
    assert f"{row}; the base was quantised (nf4), and these are its dequantised weights" in text
    whole = dataclasses.replace(subject, config=config, part="discriminator")
    assert "| weights |" not in card.write(whole)
