"""The table, the filters, and what a large file costs."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from tests.collect.rows import LINES
from tests.limits import largest_file

pytest_plugins = ["tests.run_fixtures"]


def check(*arguments: object) -> int:
    return collect.main(["check", *map(str, arguments)])


def test_a_table_for_people(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(file, "--tokenizer=random-tiny") == 0
    said = capfd.readouterr().out
    assert "11 lines with 11 responses" in said
    assert "near duplicate" in said
    assert "tokens of random-tiny" in said
    assert "█" in said
    checked = file.with_name(f"{file.stem}.checked.jsonl")
    flags = f"--tokenizer=random-tiny --out={checked}"
    assert said.endswith(f"gad_jax.collect check {file} {flags}\n")  # there is something to drop


def test_the_table_shows_empty_bins_and_no_codes_for_a_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    path = tmp_path / "rows.jsonl"
    odd = {"finish_reason": "a\x1b[2J\x9b[red]", "teacher": "\x1b]0;t\x07[bold]" + "x" * 200}
    rows = [{"prompt": "a", "teacher_response": "b" * n} | odd for n in (40, 9000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(path) == 0
    said = capfd.readouterr().out
    bins = said[said.index("responses (") : said.index("next:")].splitlines()[1:]
    assert [line.split()[0] for line in bins] == [
        "16",
        "32",
        "64",
        "128",
        *["256", "512", "1024", "2048", "4096"],
    ]
    assert [line.split()[-1] for line in bins] == ["1", *"0000000", "1"]
    assert "[red]" in said
    assert check(path, "--json") == 0
    said += capfd.readouterr().out
    assert not set(said) & set("\x1b\x07\x9b")
    rows = [{"prompt": f"p{n}", "teacher_response": " "} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "none of 3 lines has a response" in refused(collect.main, "check", str(path))


def test_filters_leave_a_file_that_trains_and_a_manifest(
    file: Path,
    held_out: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "good.jsonl"
    flags = (f"--against={held_out}", f"--out={out}", "--license=CC-BY-4.0")
    assert check(file, *flags) == 0
    said = capfd.readouterr().out
    assert said.endswith(f"gad_jax.train --data.train={out} --run_dir=runs/good --dry_run\n")
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert kept == [LINES[0], LINES[2], LINES[9]]
    assert len(sources.read(out)) == 3
    manifest = json.loads((tmp_path / "good.manifest.json").read_text())
    assert manifest["lines"] == {"in": 11, "out": 3}
    assert manifest["license"] == "CC-BY-4.0"
    assert len(manifest["sources"][str(file)]) == 64
    assert "is there" in refused(collect.main, "check", str(file), *flags)
    other = tmp_path / "some.jsonl"
    assert check(file, f"--out={other}", "--drop=cut,empty") == 0
    assert len(other.read_text().splitlines()) == 9


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": f"question {n}", "teacher_response": f"answer {n}"} for n in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [
            *largest_file(kib=9),
            *(sys.executable, "-m", "gad_jax.collect", "check"),
            *(path, f"--out={out}", "--drop=cut"),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 12, done.stderr
    assert str(out) in done.stderr.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.slow
def test_two_hundred_thousand_rows_in_bounded_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path, out = tmp_path / "big.jsonl", tmp_path / "out.jsonl"
    with open(path, "w") as file:
        for n in range(200_000):
            words = " ".join(f"w{x}" for x in random.zipf(1.3, 250) % 30_000)
            line = {"prompt": f"prompt {n} {words[:300]}", "teacher_response": words}
            file.write(json.dumps(line) + "\n")
    command = [sys.executable, "-m", "gad_jax.collect", "check", path, f"--out={out}"]
    subprocess.run([*map(str, command)], check=True, cwd=Path(__file__).parents[2])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < 1e9, f"{peak / 1e9:.2f} GB"
    assert out.stat().st_size > 0.9 * path.stat().st_size


def test_the_format_is_said_and_flags_name_other_columns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    pairs = [("Why is the sky blue?", "Air scatters blue light."), ("Name a fruit.", "An apple.")]
    known, odd = tmp_path / "known.jsonl", tmp_path / "odd.jsonl"
    for path, columns in ((known, ("question", "answer")), (odd, ("q", "a"))):
        rows = [dict(zip(columns, pair, strict=True)) for pair in pairs]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(known) == 0
    assert "read as question and answer: answer is the teacher's answer" in capfd.readouterr().out
    assert "(its columns: q, a); name those of prompt and answer" in refused(
        collect.main, "check", odd
    )
    flags = ("--data.prompt=q", "--data.response=a")
    assert check(odd, *flags) == 0
    said = capfd.readouterr().out
    assert "2 lines with 2 responses" in said
    assert f"--data.train={odd} {' '.join(flags)} " in said
