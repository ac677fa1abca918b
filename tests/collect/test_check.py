"""Every measure on rows made by hand, the filters, and what a large file costs."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.collect.duplicates import Overlap, near_duplicates, shingles, signature
from gad_jax.data import sources
from tests.limits import largest_file

pytest_plugins = ["tests.run_fixtures"]

STORY = " ".join(f"word{n}" for n in range(60))
LINES: list[dict[str, Any]] = [
    {"prompt": "Name a colour.", "teacher_response": "Blue.", "finish_reason": "stop"},
    {"prompt": "Name a colour!", "teacher_response": "blue", "finish_reason": "stop"},
    {"prompt": "Tell me.", "teacher_response": STORY, "finish_reason": "stop", "teacher": "m"},
    {"prompt": "Tell me.", "teacher_response": STORY + " ends", "finish_reason": "stop"},
    {"prompt": "Go on.", "teacher_response": "And then", "finish_reason": "length"},
    {"prompt": "Help.", "teacher_response": "I'm sorry, but I can't.", "finish_reason": "stop"},
    {"prompt": "Filter.", "teacher_response": "x", "finish_reason": "content_filter"},
    {"prompt": "Say nothing.", "teacher_response": " ", "finish_reason": "stop"},
    {"prompt": "Mail", "teacher_response": "a.b@example.org and sk-abcdefghijklmnop0123456789"},
    {"prompt": "\u4f60\u597d\u5417", "teacher_response": ["\u6211\u5f88\u597d", "\u597d"]},
    {"prompt": "Held OUT, question", "teacher_response": "answer"},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "heldout.jsonl"
    path.write_text(json.dumps({"prompt": "held out question", "teacher_response": "a"}) + "\n")
    return path


def check(*arguments: object) -> int:
    return collect.main(["check", *map(str, arguments)])


def test_every_measure(file: Path, held_out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(file, f"--against={held_out}", "--json=true") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["lines"], found["responses"]) == (11, 11)
    assert found["faults"] == {
        "cut": 1,
        "refused": 2,
        "empty": 1,
        "duplicate": 1,
        "near_duplicate": 1,
        "overlap": 1,
        "secret": 1,
    }
    assert found["e-mail addresses"] == 1
    assert found["scripts"] == {"LATIN": 10, "CJK": 1}
    assert found["teachers"] == {"m": 1}
    assert found["finish_reasons"]["not said"] == 3
    assert sum(found["response_tokens"]["up_to"].values()) == 11
    assert found["response_tokens"]["longest"] == -(-len(STORY + " ends") // 4)


def test_a_table_for_people(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(file, "--tokenizer=random-tiny") == 0
    said = capfd.readouterr().out
    assert "11 lines with 11 responses" in said
    assert "near duplicate" in said
    assert "tokens of random-tiny" in said
    assert "█" in said


def test_filters_leave_a_file_that_trains_and_a_manifest(
    file: Path, held_out: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "good.jsonl"
    flags = (f"--against={held_out}", f"--out={out}", "--license=CC-BY-4.0")
    assert check(file, *flags) == 0
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


def test_mistakes_are_named(file: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "teacher_response": "b"}\n{"prompt": 3}\n[]\n')
    assert "broken.jsonl:2: 'prompt' is not a text" in refused(collect.main, "check", str(broken))
    assert check(broken, "--skip_invalid=true", f"--out={tmp_path / 'o.jsonl'}") == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 1
    assert "no such file" in refused(collect.main, "check", "nowhere.jsonl")
    assert "no file is given" in refused(collect.main, "check")
    assert "drop=bad" in refused(collect.main, "check", str(file), "--drop=bad")


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


def test_shingles_by_hand() -> None:
    assert len(shingles("a b c d e f", 5)) == 2
    assert len(shingles("A, b", 5)) == 1
    np.testing.assert_array_equal(shingles("A, b!", 5), shingles("a b", 5))
    assert len(shingles("…", 5)) == 0


def test_near_duplicates_are_those_that_share_most_shingles() -> None:
    random = np.random.default_rng(0)
    base = [f"w{n}" for n in random.integers(0, 5000, 400)]
    near, far = list(base), list(base)
    near[200] = "other"  # 5 of 396 shingles
    far[::10] = ["other"] * 40  # 40 places, each in five shingles: half of them differ
    texts = [" ".join(words) for words in (base, near, far, base[::-1])]
    found = near_duplicates(np.stack([signature(text) for text in texts]))
    assert found.tolist() == [False, True, False, False]


def test_overlap_is_a_run_of_thirteen_words() -> None:
    run = " ".join(f"w{n}" for n in range(20))
    overlap = Overlap([run, "Short one."])
    assert overlap.whole("short, ONE")
    assert not overlap.whole("short")
    assert overlap.shares("before " + " ".join(f"w{n}" for n in range(3, 16)) + " after")
    assert not overlap.shares(" ".join(f"w{n}" for n in range(12)))


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
