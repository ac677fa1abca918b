"""A server that mixes every fault: what it bills is stored, and what it refuses is named.

`COLLECT_SECONDS=600 python -m pytest tests/collect/test_hostile.py` runs for so long; each round
has another seed.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from tests.collect.harness import KEY, VARIABLE, flags, names, read, write_prompts
from tests.fault_server import FaultServer
from tests.teacher.bodies import ABOUT_THE_PROMPT, UNCLEAR

SECONDS = float(os.environ.get("COLLECT_SECONDS", "0"))
PROMPTS = 120
ESCAPE = "\x1b[2J\x1b]0;title\x07\x9b31m"

WIRE = ("reset", "drop", "truncate", "html", "slow", "chunks", "gzip", "longer", "shorter", "bytes")
USAGES: tuple[Any, ...] = (
    *(None, {}, "many", {"prompt_tokens": 5, "completion_tokens": None}, {"total_tokens": 9}),
    *({"input_tokens": 5, "output_tokens": 4}, {"prompt_tokens": 1.5, "completion_tokens": "3"}),
)
REPLIES: tuple[dict[str, Any], ...] = (
    *({"usage": usage} for usage in USAGES),
    *({"id": name} for name in (7, None, ["x"], f"{KEY}{ESCAPE}")),
    *({"model": name} for name in (None, 3, f"m {KEY} {ESCAPE}")),
    *({"choice": {"index": index}} for index in (None, "0", 9)),
    *(
        {"choice": {"finish_reason": reason}}
        for reason in ("eos_token", "STOP", None, 3, f"new {KEY} {ESCAPE}", {"type": "stop"})
    ),
    {"message": {"content": ["Answer ", {"type": "text", "text": f"with {KEY}"}]}},
    {"message": {"content": f"<think>\n{KEY}\n</think>\n\nAnswer"}},
    {"message": {"content": "<think>no end"}},
    {"message": {"content": "a lone \ud83d and a \0"}},
    {"message": {"content": None, "refusal": "I will not."}},
    {"message": {"content": None, "tool_calls": [{"id": 1}]}},
    {"message": {"content": f"Answer {ESCAPE}", "reasoning_content": f"thought {KEY}"}},
    {"extra": {"deep": [[[]]], "big": 10**4000}, "error": None},
)
PASSING: tuple[Any, ...] = (
    *("429 after 0.01", "500", "503", "408"),
    (500, {"error": {"code": f"{KEY}{ESCAPE}", "message": f"{KEY}{ESCAPE}"}}),
    (200, {"error": {"code": 502, "message": f"{KEY}{ESCAPE}"}}),
    (200, {"error": {"code": f"server_error_{KEY}", "message": ESCAPE}}),
    (200, {"choices": [{"message": {"content": "cut"}, "finish_reason": "error"}]}),
    *((200, body) for body in (b"", b"{", b"[" * 5000, b"null", b"\xff\xfe\0", b"data: {}\n\n")),
    (200, {"choices": []}),
    (200, b" " * (2**20)),
    (599, b"\x1b[2J"),
)


class Hostile:
    """A script: some prompts are refused for good, the others meet faults and get odd replies."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tries: dict[str, int] = {}
        places = self.random.sample(range(PROMPTS), PROMPTS // 8)
        bodies = self.random.choices([*ABOUT_THE_PROMPT, *UNCLEAR], k=len(places))
        self.refused = {
            f"prompt {n}": self._hostile(answer) for n, answer in zip(places, bodies, strict=True)
        }

    def _hostile(self, answer: tuple[int, Any]) -> tuple[int, Any]:
        status, body = answer
        return status, {**body, "request_id": f"{KEY}{ESCAPE}"} if isinstance(body, dict) else body

    def __call__(self, number: int, body: dict[str, Any]) -> Any:
        prompt = body["messages"][-1]["content"]
        if prompt in self.refused:
            return self.refused[prompt]
        self.tries[prompt] = self.tries.get(prompt, 0) + 1
        if self.tries[prompt] < 5 and self.random.random() < 0.4:
            return self.random.choice(PASSING if self.random.random() < 0.5 else WIRE)
        return self.random.choice(REPLIES) if self.random.random() < 0.6 else ""


def one_round(seed: int, prompts: Path, out: Path, capfd: Any) -> dict[str, int]:
    script = Hostile(seed)
    with FaultServer(script) as server:
        arguments = flags(server, prompts, out, "--concurrency=32", "--attempts=9")
        assert collect.main(arguments) == 0
        requests = len(server.requests)
        assert collect.main(arguments) == 0
        assert len(server.requests) == requests  # neither paid nor refused prompts are asked again
    shown = "".join(capfd.readouterr())
    lines, failed = read(out), read(out.with_name(f"{out.stem}.failed.jsonl"))
    assert server.billed == len(lines) == len(names(lines)) == PROMPTS - len(script.refused)
    refused = {line["prompt_id"] for line in failed}
    assert refused == {f"prompts.txt:{int(p.split()[1]) + 1}" for p in script.refused}
    assert all(line["final"] for line in failed)
    for path in out.parent.rglob("*.json*"):
        assert KEY not in path.read_text()
    assert KEY not in shown
    assert not set(shown) & set("\x1b\x07\x9b")
    assert sum(len(row.responses) for row in sources.read(out)) > 0.5 * len(lines)
    assert not any("<think>" in line["teacher_response"] for line in lines)
    return {"requests": requests, "billed": server.billed, "refused": len(refused)}


def test_billed_is_stored_and_refused_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    prompts = write_prompts(tmp_path / "prompts.txt", PROMPTS)
    started, totals = time.monotonic(), {"rounds": 0}
    while totals["rounds"] < 1 or time.monotonic() - started < SECONDS:
        seed = totals["rounds"]
        for name, count in one_round(seed, prompts, tmp_path / f"{seed}.jsonl", capfd).items():
            totals[name] = totals.get(name, 0) + count
        totals["rounds"] += 1
        (tmp_path / "figures.json").write_text(json.dumps(totals))
    if SECONDS:
        with capfd.disabled():
            print(totals)
