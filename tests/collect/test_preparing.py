"""Public sets of prompts, in the forms in which they are downloaded, split once and for all."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from tests.collect.rows import lmsys, write_parquet

pytest_plugins = ["tests.run_fixtures"]


def prepare(*arguments: object) -> int:
    return collect.main(["prepare", *map(str, arguments)])


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_papers_rows_are_split_by_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_parquet(tmp_path / "train.parquet", [*lmsys(100), *lmsys(1)])
    out = tmp_path / "out"
    assert prepare("lmsys-gpt5", f"--source={source}", f"--out={out}", "--heldout=10") == 0
    paths = f"--data.train={out}/train.jsonl --data.heldout={out}/heldout.jsonl"
    assert capsys.readouterr().out.endswith(f"gad_jax.train {paths} --dry_run\n")
    train, heldout = read(out / "train.jsonl"), read(out / "heldout.jsonl")
    assert (len(train), len(heldout)) == (80, 20)  # two rows a prompt
    prompts = [{row["messages"][0]["content"] for row in rows} for rows in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert len(sources.read(out / "train.jsonl")) == 80
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["lines"] == {"train": 80, "heldout": 20, "repeated": 1}


def test_the_split_is_decided_by_the_seed_and_the_prompt(tmp_path: Path) -> None:
    def heldout(name: str, rows: list[dict[str, Any]], seed: int = 0) -> set[str]:
        source = write_parquet(tmp_path / f"{name}.parquet", rows)
        flags = (f"--source={source}", f"--out={tmp_path / name}", f"--seed={seed}", "--heldout=10")
        assert prepare("lmsys-gpt5", *flags) == 0
        return {row["messages"][0]["content"] for row in read(tmp_path / name / "heldout.jsonl")}

    first = heldout("first", lmsys(200))
    assert heldout("again", lmsys(200)[::-1]) == first
    assert heldout("other", lmsys(200), seed=1) != first
    assert len(heldout("more", lmsys(220)) & first) >= 7


def test_prompts_for_a_teacher_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = [
        {"conversations": [{"from": "human", "value": f"q{n % 30}"}, {"from": "gpt", "value": "a"}]}
        for n in range(40)
    ]
    openai = [
        {
            "conversation_id": f"c{n}",
            "conversation": [{"role": "user", "content": f"p{n}"}, {"role": "assistant"}],
        }
        for n in range(10)
    ]
    source = tmp_path / "clean.jsonl"
    rows = [*share, *openai, {"conversations": []}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert prepare("lmsys-prompts", f"--source={source}", f"--out={out}", "--heldout=5") == 0
    assert f"gad_jax.collect --prompts={out}/train.prompts.jsonl --m" in capsys.readouterr().out
    train, heldout = read(out / "train.prompts.jsonl"), read(out / "heldout.prompts.jsonl")
    assert (len(train), len(heldout)) == (35, 5)
    assert {"c0", "c9"} <= {row["id"] for row in [*train, *heldout]}
    assert json.loads((out / "manifest.json").read_text())["lines"]["repeated"] == 10
    assert sum(json.loads((out / "manifest.json").read_text())["invalid"].values()) == 1
    collected = tmp_path / "train.jsonl"
    flags = ("--teacher=local:random-tiny", "--max_new_tokens=2", f"--out={collected}")
    assert collect.main([f"--prompts={out / 'train.prompts.jsonl'}", *flags]) == 0
    assert len(read(collected)) == 35


@pytest.mark.parametrize("column", ["conversation", "conversations"])
def test_conversations_of_a_parquet_file(tmp_path: Path, column: str) -> None:
    rows = [
        {
            "id": f"c{n}",
            column: [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a"}],
        }
        for n in range(20)
    ]
    source = write_parquet(tmp_path / "train.parquet", rows)
    out = tmp_path / "out"
    assert prepare("lmsys-prompts", f"--source={source}", f"--out={out}", "--heldout=5") == 0
    train = read(out / "train.prompts.jsonl")
    assert len(train) == 15
    assert {row["messages"][0]["content"][0] for row in train} == {"q"}


@pytest.mark.slow
def test_two_hundred_thousand_rows_in_bounded_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    source = tmp_path / "train.jsonl"
    with open(source, "w") as file:
        for n in range(200_000):
            words = " ".join(f"w{x}" for x in random.zipf(1.3, 250) % 30_000)
            row = {"content": [{"role": "user", "content": f"{n} {words[:300]}"}]}
            file.write(json.dumps(row | {"teacher_response": words, "id": n}) + "\n")
    command = [sys.executable, "-m", "gad_jax.collect", "prepare", "lmsys-gpt5"]
    command += [f"--source={source}", f"--out={tmp_path / 'out'}"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < 1e9, f"{peak / 1e9:.2f} GB"
    assert len(read(tmp_path / "out" / "heldout.jsonl")) == 500
