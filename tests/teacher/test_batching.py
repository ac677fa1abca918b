"""The provider's batch mode, against a provider that counts what it is paid for."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from gad_jax.teacher import batching
from tests.collect.harness import KEY, flags, names, read, start
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]

POLLS = 3
"""A batch is through when it has been looked at so often."""


class Provider:
    """OpenAI's Batch API as far as it is used: files, batches, and their outputs.

    `billed` counts the answers. `fault` gets "METHOD path" and how many such requests came before;
    it may return what a `FaultServer.batch` may, or "lost" to do as asked and then cut the
    connection, or "" for no fault. `outcome` may write a line of the output, or return "failed".
    """

    def __init__(
        self,
        fault: Callable[[str, int], Any] = lambda request, count: "",
        outcome: Callable[[dict[str, Any]], Any] = lambda request: None,
    ) -> None:
        self.fault, self.outcome = fault, outcome
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.seen: dict[str, int] = {}
        self.headers: list[dict[str, str]] = []
        self.billed = 0

    def __call__(self, request: str, headers: dict[str, str], raw: bytes) -> Any:
        method, path = request.split(" ")
        kind = f"{method} {urlsplit(path).path.split('/')[0]}"
        self.seen[kind] = self.seen.get(kind, -1) + 1
        self.headers.append(headers)
        fault = self.fault(kind, self.seen[kind])
        if fault not in ("", "lost"):
            return fault
        answer = self.answer(kind, path, raw)
        return None if fault == "lost" else answer

    def answer(self, kind: str, path: str, raw: bytes) -> Any:
        if kind == "POST files":
            assert b'name="purpose"' in raw
            lines = [line for line in raw.split(b"\n") if line.startswith(b'{"custom_id"')]
            return self._file(b"\n".join(lines))
        if kind == "POST batches":
            asked = json.loads(raw)
            assert (asked["endpoint"], asked["completion_window"]) == (
                "/v1/chat/completions",
                "24h",
            )
            batch = {"id": f"batch_{len(self.batches)}", "status": "validating", "polls": 0}
            self.batches[batch["id"]] = batch | asked
            return self.batches[batch["id"]]
        if kind == "GET files":
            return self.files[path.split("/")[1]]
        if "/" in path:
            return self._poll(self.batches[path.split("/")[1]])
        query = parse_qs(urlsplit(path).query)
        newest_first = list(self.batches.values())[::-1]
        after = query.get("after", [""])[0]
        place = [batch["id"] for batch in newest_first].index(after) + 1 if after else 0
        page = newest_first[place : place + 2]  # small, so that there are several
        return {"data": page, "has_more": place + 2 < len(newest_first)}

    def _file(self, content: bytes) -> dict[str, str]:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {"id": name}

    def _poll(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["polls"] += 1
        if batch["polls"] == POLLS:
            self._answer_all(batch)
        return batch

    def _answer_all(self, batch: dict[str, Any]) -> None:
        requests = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        outputs, errors = [], []
        for request in requests:
            assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
            line = self.outcome(request)
            if line == "failed":
                said = {"code": "token_limit_exceeded", "message": "Too many tokens at once."}
                batch |= {"status": "failed", "errors": {"data": [said]}}
                return
            if line is None:
                self.billed += 1
                prompt = request["body"]["messages"][-1]["content"]
                message = {"role": "assistant", "content": f"Answer to {prompt}"}
                body = {
                    "id": f"reply-{self.billed}",
                    "model": "scripted-1",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5},
                }
                line = {"response": {"status_code": 200, "body": body}, "error": None}
            whole = json.dumps({"id": "r", "custom_id": request["custom_id"]} | line).encode()
            (outputs if line["error"] is None else errors).append(whole)
        batch["status"] = "completed"
        batch["request_counts"] = {"completed": len(outputs), "failed": len(errors)}
        random.Random(0).shuffle(outputs)
        for name, lines in (("output_file_id", outputs), ("error_file_id", errors)):
            batch[name] = self._file(b"\n".join(lines))["id"] if lines else None


def batch_flags(
    server: FaultServer, prompts: Path, out: Path, *more: str, size: int = 8, poll: float = 0.02
) -> list[str]:
    about = ("--batch", f"--poll_seconds={poll}", f"--batch_requests={size}")
    return flags(server, prompts, out, *about, *more)


def test_batches_give_the_same_lines(prompts: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    provider = Provider()
    more = ("--samples=2", "--system=Be brief.", "--temperature=0.5")
    with FaultServer(batch=provider) as server:
        assert collect.main(batch_flags(server, prompts, out, *more)) == 0
        assert (len(provider.batches), provider.billed) == (5, 40)
        assert collect.main(batch_flags(server, prompts, out, *more)) == 0
        assert collect.main(flags(server, prompts, out, *more)) == 0  # nor has the other mode work
        assert (len(provider.batches), server.requests) == (5, [])
    lines = read(out)
    assert len(names(lines)) == len(lines) == 40
    for line in lines:
        assert line["teacher_response"] == f"Answer to {line['messages'][0]['content']}"
        assert (line["system"], line["parameters"]) == ("Be brief.", {"temperature": 0.5})
        assert line["usage"] == {"prompt_tokens": 10, "completion_tokens": 5}
    assert len(sources.read(out)) == 20
    assert not batching.directory(out).exists()
    assert "done: 40 of 40 responses" in capsys.readouterr().out


def test_nothing_paid_is_lost_however_often_it_is_killed(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    chance = random.Random(1)

    def fault(request: str, count: int) -> Any:
        time.sleep(0.02)
        return chance.choice([*[""] * 12, "lost", None, (503, {}), b"{torn"])

    provider = Provider(fault)
    with FaultServer(batch=provider) as server:
        arguments = batch_flags(server, prompts, out, "--attempts=1", size=3)
        kills = 0
        for number in range(6):
            run = start(*arguments)
            seen = sum(provider.seen.values())
            while run.poll() is None and sum(provider.seen.values()) < seen + 5 + 4 * number:
                time.sleep(0.005)
            kills += run.poll() is None
            run.kill()
            run.communicate()
        run = start(*arguments)
        errors = run.communicate()[1]
        assert (run.returncode, errors) == (0, "")
    assert kills >= 4  # else nothing was proved
    lines = read(out)
    assert len(lines) == len(names(lines)) == provider.billed == 20
    assert {headers["authorization"] for headers in provider.headers} == {f"Bearer {KEY}"}
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_batch_whose_making_lost_its_answer_is_found(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    provider = Provider(lambda request, count: "lost" if request == "POST batches" else "")
    with FaultServer(batch=provider) as server:
        assert collect.main(batch_flags(server, prompts, out)) == 0
    assert (len(provider.batches), provider.billed, len(read(out))) == (3, 20, 20)


def test_stopping_leaves_the_batches_and_the_other_mode_waits(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.jsonl"
    provider = Provider()
    with FaultServer(batch=provider) as server:
        run = start(*batch_flags(server, prompts, out, poll=60))
        while run.poll() is None and provider.seen.get("GET batches", -1) < 2:
            time.sleep(0.01)
        run.terminate()
        shown, errors = run.communicate()
        assert run.returncode == 0
        assert "the batches continue at the provider" in errors
        assert "stopped; the same command resumes it" in shown
        says = refused(collect.main, *flags(server, prompts, out))
        assert "20 responses are on their way in batches; add --batch" in says
        prompts.write_text("one more\n")  # those on their way are kept, though not asked for now
        shown = start(*batch_flags(server, prompts, out)).communicate()[0]
    assert "20 are on their way in batches already" in shown
    assert (provider.billed, len(read(out))) == (21, 21)
    assert json.loads((tmp_path / "out.manifest.json").read_text())["ended"] == "done"


def test_what_a_batch_does_not_answer_is_recorded_and_retried(
    prompts: Path, tmp_path: Path, capsys: Any
) -> None:
    def outcome(request: dict[str, Any]) -> Any:
        prompt = request["body"]["messages"][-1]["content"]
        long = {"error": {"code": "context_length_exceeded", "message": "Too long."}}
        return {
            "prompt 3": {"response": {"status_code": 400, "body": long}, "error": None},
            "prompt 4": {"response": None, "error": {"code": "batch_expired", "message": "Late."}},
            "prompt 5": {"response": {"status_code": 200, "body": {"no": 1}}, "error": None},
            "prompt 16": "failed",
        }.get(prompt)

    out = tmp_path / "out.jsonl"
    with FaultServer(batch=Provider(outcome=outcome)) as server:
        assert collect.main(batch_flags(server, prompts, out)) == 0
    shown = capsys.readouterr().out
    assert "done: 13 of 20 responses" in shown
    assert "1 refused, 6 unanswered" in shown
    assert "1 × batch failed (Too many tokens at once.)" in shown
    reasons = {line["prompt_id"]: line["reason"] for line in read(tmp_path / "out.failed.jsonl")}
    assert reasons["prompts.txt:4"] == "refused: status 400: Too long."
    assert reasons["prompts.txt:5"] == "unanswered: Late."
    assert "no chat completion" in reasons["prompts.txt:6"]
    assert "the batch is failed and has no answer" in reasons["prompts.txt:17"]
    with FaultServer(batch=Provider()) as server:
        assert collect.main(batch_flags(server, prompts, out)) == 0
        assert len(read(out)) == 19  # the refused prompt is not asked again unless told
        assert [line["final"] for line in read(tmp_path / "out.failed.jsonl")] == [True]
        assert collect.main(batch_flags(server, prompts, out, "--retry_refused")) == 0
    assert len(read(out)) == 20
    assert not (tmp_path / "out.failed.jsonl").exists()


def test_the_budget_counts_what_is_on_its_way(prompts: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out.jsonl"
    provider = Provider()
    with FaultServer(batch=provider) as server:
        run = start(*batch_flags(server, prompts, out, "--max_requests=11", poll=60))
        while run.poll() is None and provider.seen.get("GET batches", -1) < 1:
            time.sleep(0.01)
        run.terminate()
        run.communicate()
        assert collect.main(batch_flags(server, prompts, out, "--max_requests=11")) == 0
    assert (provider.billed, len(read(out))) == (11, 11)
    assert "the budget is used up" in capsys.readouterr().out


def test_mistakes_are_one_sentence(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out.jsonl"
    too_large = Provider(lambda request, count: (413, {}) if request == "POST files" else "")
    with FaultServer(batch=too_large) as server:
        says = refused(collect.main, *batch_flags(server, prompts, out))
    assert "lower --batch_requests" in says
    wrong = Provider(lambda request, count: (401, {"error": {"message": KEY}}))
    with FaultServer(batch=wrong) as server:
        says = refused(collect.main, *batch_flags(server, prompts, out))
    assert "is not set" in says
    assert KEY not in says
    broken = next(batching.directory(out).glob("*.json"))
    broken.write_text("{}")
    says = refused(collect.main, *batch_flags(server, prompts, out))
    assert f"{broken} is not a batch that collect wrote" in says
    local = ("--teacher=local:random-tiny", "--batch", f"--out={out}", f"--prompts={prompts}")
    assert "a local one answers at once" in refused(collect.main, *local)


def test_a_provider_that_is_gone_ends_the_run(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    gone = Provider(lambda request, count: (500, {}))
    with FaultServer(batch=gone) as server:
        says = refused(
            collect.main, *batch_flags(server, prompts, tmp_path / "o.jsonl", "--attempts=1")
        )
    assert "20 requests in a row got no answer (the last: status 500" in says
