"""OpenAI's API over a real socket, on a student that training made."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gad_jax.serve import __main__ as serve
from tests.serve.servers import Server, serving

pytest_plugins = ["tests.run_fixtures"]

Command = Callable[..., Any]

NAME = "student"
FLAGS = (f"--name={NAME}", "--slots=3", "--waiting=200", "--context=1024")


@pytest.fixture(scope="module")
def server(tiny_run: Path) -> Iterator[Server]:
    with serving(f"--model={tiny_run}", *FLAGS) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.address.removesuffix("/v1"), timeout=600) as one:
        yield one


def body(text: str = "Hello", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": NAME, "messages": messages, "max_tokens": 24, "temperature": 0, **more}


def ask(client: httpx2.Client, text: str = "Hello", **more: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json=body(text, **more))
    assert response.status_code == 200, response.text
    return response.json()


def text_of(answer: dict[str, Any], choice: int = 0) -> str:
    return answer["choices"][choice]["message"]["content"]


def events(client: httpx2.Client, text: str = "Hello", **more: Any) -> list[Any]:
    with client.stream("POST", "/v1/chat/completions", json=body(text, stream=True, **more)) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_many_at_once_get_the_answers_of_generate(
    client: httpx2.Client, command: Command, tiny_run: Path, tmp_path: Path
) -> None:
    texts = [f"Question {n} " + "word " * (7 * n) for n in range(8)]
    file, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    flags = ("--model", tiny_run, "--file", file, "--out", out, "--max_new_tokens=24")
    assert command("generate", *flags).returncode == 0
    expected = [json.loads(line)["responses"][0] for line in out.read_text().splitlines()]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda text: ask(client, text), texts))
    assert [text_of(answer) for answer in answers] == expected
    assert len(set(expected)) > 1
    first = answers[0]
    assert first["object"] == "chat.completion"
    assert first["choices"][0]["finish_reason"] in ("stop", "length")
    usage = first["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 24


def test_a_stream_is_the_answer_in_parts(client: httpx2.Client) -> None:
    how: dict[str, Any] = {"temperature": 1, "seed": 5, "n": 2, "max_tokens": 40}
    whole = ask(client, **how)
    *parts, last = events(client, stream_options={"include_usage": True}, **how)
    for choice in range(2):
        deltas = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(one["delta"].get("content", "") for one in deltas)
        assert text == text_of(whole, choice)
        reasons = [one["finish_reason"] for one in deltas]
        assert reasons == [None] * (len(deltas) - 1) + [whole["choices"][choice]["finish_reason"]]
    assert last["usage"] == whole["usage"]
    assert text_of(whole, 0) != text_of(whole, 1)


def test_a_sample_is_of_its_seed_alone(client: httpx2.Client) -> None:
    def sample(seed: int | None) -> str:
        return text_of(ask(client, temperature=1.2, top_p=0.9, top_k=100, min_p=0.001, seed=seed))

    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(sample, [1, 2, 3, 1, 2, 3]))
    assert together[:3] == together[3:]
    assert len(set(together)) == 3
    assert sample(2) == together[1]
    assert sample(None) != sample(None)

    # the choices of one request and the next request's are all drawn anew
    several = ask(client, temperature=1.2, n=3)
    texts = [text_of(several, choice) for choice in range(3)]
    texts += [text_of(ask(client, temperature=1.2)) for _ in range(3)]
    assert len(set(texts)) == 6


def test_answers_end_where_they_are_told_to(client: httpx2.Client) -> None:
    how: dict[str, Any] = {"temperature": 1, "seed": 11, "max_tokens": 60}
    whole = text_of(ask(client, **how))
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    cut = ask(client, stop=["never-said", stop], **how)
    assert text_of(cut) == whole[: whole.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    streamed = events(client, stop=stop, **how)
    pieces = [part["choices"][0]["delta"].get("content", "") for part in streamed]
    assert "".join(pieces) == text_of(cut)
    longest = ask(client, max_completion_tokens=5, **how)
    assert longest["usage"]["completion_tokens"] == 5
    assert longest["choices"][0]["finish_reason"] == "length"


def test_log_probs_are_of_the_tokens(client: httpx2.Client) -> None:
    greedy = ask(client, logprobs=True)
    content = greedy["choices"][0]["logprobs"]["content"]
    ended = greedy["choices"][0]["finish_reason"] == "stop"
    assert len(content) == greedy["usage"]["completion_tokens"] - ended
    assert all(-7 < one["logprob"] <= 0 for one in content)  # the likeliest of 512
    assert ask(client)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slots(client: httpx2.Client, stream: bool) -> None:
    def state() -> dict[str, int]:
        return client.get("/health").json()

    many = body(n=100, max_tokens=900, temperature=1, stream=stream)
    leaving = httpx2.Client(base_url=client.base_url, timeout=600)
    if stream:
        with leaving.stream("POST", "/v1/chat/completions", json=many) as response:
            lines = response.iter_lines()  # an iterator that is dropped hangs up
            next(lines)
            assert state()["waiting"] > 50
    else:
        with pytest.raises(httpx2.ReadTimeout):
            leaving.post("/v1/chat/completions", json=many, timeout=1.0)
    leaving.close()
    started = time.monotonic()
    while (left := state())["busy"] + left["waiting"]:
        assert time.monotonic() - started < 60, left
        time.sleep(0.02)
    assert text_of(ask(client)) == text_of(ask(client))


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        ({"model": "other"}, 404, "model 'other' is not served here; 'student' is"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "Invalid JSON"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "role 'robot' is unknown"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "must end with a user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"top_p": 0}, 400, "top_p: "),
        ({"n": 0}, 400, "n: "),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"repetition_penalty": 1.2}, 400, "repetition_penalty is not supported"),
        ({"temprature": 1}, 400, "did you mean temperature?"),
        ({"chat_template_kwargs": {"x": 1}}, 400, "never reads 'x'"),
        ({"chat_template_kwargs": {"x": "y" * 5000}}, 400, "more than 4096 characters"),
        ({"messages": [{"role": "user", "content": "x " * 90_000}]}, 400, "more than 1024 tokens"),
        ({"max_tokens": 1020}, 400, "and 1024 are for it and its answer of 1020"),
        ({"messages": [{"role": "user", "content": "x" * 2000}], "max_tokens": None}, 400, "1024"),
    ],
)
def test_mistakes_are_named(
    client: httpx2.Client, more: dict[str, Any], status: int, says: str
) -> None:
    content = json.dumps(body(**more))  # httpx would refuse the surrogate
    response = client.post("/v1/chat/completions", content=content)
    assert response.status_code == status
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_else_clients_send(client: httpx2.Client) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    same = body(messages=[{"role": "user", "content": parts}], user="me", store=False, tools=[])
    same |= {"frequency_penalty": 0, "response_format": {"type": "text"}, "stop": None}
    response = client.post("/v1/chat/completions", json=same)
    assert text_of(response.json()) == text_of(ask(client))
    assert client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert client.post("/v1/chat/completions", content=b"x" * (17 << 20)).status_code == 413
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == NAME
    assert client.get(f"/v1/models/{NAME}").json() == model
    elsewhere = client.get("/health", headers={"Host": "example.org"})
    assert elsewhere.status_code == 400  # a page whose name leads here


def complete(client: httpx2.Client, prompt: Any, **more: Any) -> dict[str, Any]:
    asked = {"model": NAME, "prompt": prompt, "max_tokens": 24, "temperature": 0, **more}
    response = client.post("/v1/completions", json=asked)
    assert response.status_code == 200, response.text
    return response.json()


def texts_of(answer: dict[str, Any]) -> list[str]:
    assert answer["object"] == "text_completion"
    assert [one["index"] for one in answer["choices"]] == list(range(len(answer["choices"])))
    return [one["text"] for one in answer["choices"]]


def test_plain_prompts_are_continued(client: httpx2.Client) -> None:
    (hello,) = texts_of(complete(client, "Hello"))
    (other,) = texts_of(complete(client, "Question"))
    tokens = [list(text.encode()) for text in ("Hello", "Question")]  # a token is a byte
    assert texts_of(complete(client, ["Hello", "Question"])) == [hello, other]
    assert texts_of(complete(client, tokens)) == [hello, other]
    assert texts_of(complete(client, tokens[0], echo=True)) == ["Hello" + hello]
    assert len(complete(client, "Hello", max_tokens=None)["choices"][0]["text"]) <= 16

    how: dict[str, Any] = {"temperature": 1, "seed": 3, "n": 2, "max_tokens": 30}
    several = complete(client, ["Hello", "Question"], **how)
    assert texts_of(several)[2:] == texts_of(complete(client, "Question", **how))
    assert several["usage"]["prompt_tokens"] == 13
    streamed = [""] * 4
    asked = {"model": NAME, "prompt": ["Hello", "Question"], "stream": True, **how}
    asked |= {"stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/completions", json=asked) as got:
        lines = [line.removeprefix("data: ") for line in got.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    *parts, last = map(json.loads, lines)
    for part in parts:
        (one,) = part["choices"]
        streamed[one["index"]] += one["text"]
    assert streamed == texts_of(several)
    assert last["usage"] == several["usage"]


def test_log_probs_of_plain_prompts(client: httpx2.Client) -> None:
    (one,) = complete(client, "Hello", logprobs=0, ignore_eos=True)["choices"]
    found = one["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == 24
    assert all(-7 < value <= 0 for value in found["token_logprobs"])
    assert found["text_offset"][0] == 0
    assert sorted(found["text_offset"]) == found["text_offset"]


def test_tokens_that_end_an_answer(client: httpx2.Client) -> None:
    how: dict[str, Any] = {"temperature": 1, "seed": 4, "max_tokens": 60, "logprobs": True}
    whole = ask(client, ignore_eos=True, **how)["choices"][0]
    assert whole["finish_reason"] == "length"
    said = [one["bytes"] for one in whole["logprobs"]["content"]]
    assert len(said) == 60
    stop = next(one[0] for one in said[5:] if len(one) == 1)  # the token of a byte is its value
    cut = ask(client, ignore_eos=True, stop_token_ids=[stop, 10**6], **how)["choices"][0]
    assert cut["finish_reason"] == "stop"
    expected = said[: said.index([stop])]
    assert [one["bytes"] for one in cut["logprobs"]["content"]] == expected


@pytest.mark.parametrize(
    "extreme",
    [
        {"top_k": 2**31},
        {"top_k": 10**40},
        {"top_p": 1e-38},
        {"top_p": 5e-324, "min_p": 5e-324},
        {"temperature": 5e-324},
        {"temperature": 100, "min_p": 1},
        {"seed": -(10**30)},
    ],
)
def test_extremes_are_answered(client: httpx2.Client, extreme: dict[str, Any]) -> None:
    (one,) = ask(client, **{"temperature": 1, "logprobs": True, **extreme})["choices"]
    assert one["finish_reason"] in ("stop", "length")
    assert all(-50 < token["logprob"] <= 0 for token in one["logprobs"]["content"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/v1/models/org/name", 404, "model_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there(
    client: httpx2.Client, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"


def test_the_page_shows_the_answer(client: httpx2.Client) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=300_000
        )
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        tab.set_default_timeout(300_000)  # the server may compile first
        tab.goto(str(client.base_url))
        tab.click("summary")
        tab.fill("#temperature", "0")
        tab.fill("#max_tokens", "24")
        tab.fill("#message", "Hello")
        tab.keyboard.press("Enter")
        tab.wait_for_selector(".assistant:not(.busy) .text")
        shown = tab.text_content(".assistant .text")
        browser.close()
    assert shown == text_of(ask(client))


def test_a_key_few_places_and_an_orderly_end(tiny_run: Path, refused: Callable[..., str]) -> None:
    key = {"A_KEY": "sk-SENTINEL0123456789"}
    few = (f"--model={tiny_run}", f"--name={NAME}", "--slots=1", "--waiting=2")
    with serving(*few, "--key_variable=A_KEY", environment=key) as running:
        with httpx2.Client(base_url=running.address.removesuffix("/v1"), timeout=600) as stranger:
            response = stranger.post("/v1/chat/completions", json=body())
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert stranger.get("/v1/models").status_code == 401
            stranger.headers["Authorization"] = f"Bearer {key['A_KEY']}"
            assert ask(stranger)["choices"]
            busy = stranger.post("/v1/chat/completions", json=body(n=20, max_tokens=500))
            assert busy.status_code == 429
            assert int(busy.headers["Retry-After"]) > 0
            assert ask(stranger)["choices"]
        port = running.address.rsplit(":", 1)[1].removesuffix("/v1")
        taken = refused(serve.main, f"--model={tiny_run}", f"--port={port}")
        assert f"--port={port} cannot be used" in taken
        assert running.end() == (0, "")
