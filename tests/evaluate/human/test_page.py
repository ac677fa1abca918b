"""The voting page: the command itself over HTTP, and in a browser."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.evaluate.human.harness import EVIL

pytest_plugins = ["tests.run_fixtures"]
ROOT = Path(__file__).parents[3]
KEY = re.compile(r'name="ballot" value="(\w+)"')


@contextlib.contextmanager
def served(directory: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Runs the command and yields the page's address."""
    command = [sys.executable, "-m", "gad_jax.evaluate", "human", str(directory), "--port=0"]
    command += ["--students=gad,before"]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0].rstrip("/"), process
        finally:
            process.kill()


def patient() -> httpx2.Client:
    return httpx2.Client(follow_redirects=True, timeout=60)


def kept(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "votes.jsonl").read_text().splitlines()]


def test_votes_over_http_survive_a_kill(directory: Path) -> None:
    with served(directory) as (url, process), patient() as client:
        page = client.get(f"{url}/vote?annotator=Ann")
        assert "0 of 3 done" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "&lt;script&gt;" in page.text
        assert "<script>" not in page.text
        assert "<img" not in page.text
        assert str(123456789 * 987654321) not in page.text
        for word in ("gad", "before", "weights"):
            assert word not in page.text  # blind
        form = {"annotator": "Ann", "ballot": KEY.findall(page.text)[0], "choice": "left"}
        page = client.post(f"{url}/vote", data=form)
        assert "1 of 3 done" in page.text
        process.send_signal(signal.SIGKILL)
        process.wait()
    with served(directory) as (url, process), patient() as client:
        for done in (1, 2):
            page = client.get(f"{url}/vote?annotator=Ann")
            assert f"{done} of 3 done" in page.text
            form["ballot"] = KEY.findall(page.text)[0]
            page = client.post(f"{url}/vote", data=form)
        assert "Thank you, Ann" in page.text
        assert "0 of 3 done" in client.get(f"{url}/vote?annotator=Bob").text
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
        assert process.stdout is not None
        printed = process.stdout.read()
    assert "gad against before: 1 annotator" in printed
    assert "the answer shown first got 100.0 %" in printed
    votes = kept(directory)
    assert sorted(vote["id"] for vote in votes) == ["q0", "q1", "q2"]
    assert all(vote["winner"] == vote["left"] for vote in votes)
    assert json.loads((directory / "votes.json").read_text())["annotators"] == {"Ann": 3}


def test_what_is_no_vote_is_refused(directory: Path) -> None:
    with served(directory) as (url, _), httpx2.Client(timeout=60) as client:
        page = client.get(f"{url}/vote?annotator=Ann")
        good = {"annotator": "Ann", "ballot": KEY.findall(page.text)[0], "choice": "tie"}
        for bad in ({"choice": "all"}, {"ballot": "x"}, {"annotator": " "}):
            assert client.post(f"{url}/vote", data=good | bad).status_code == 400
        headers = {"Origin": "http://example.org"}
        assert client.post(f"{url}/vote", data=good, headers=headers).status_code == 403
        assert client.get(f"{url}/", headers={"Host": "example.org"}).status_code == 400
        assert client.post(f"{url}/vote", data=good | {"x": "y" * 9999}).status_code == 413
        assert client.get(f"{url}/vote").status_code == 303
        assert client.get(f"{url}/../vote.py").status_code == 404
        assert not (directory / "votes.jsonl").exists()
        headers = {"Origin": url}
        assert client.post(f"{url}/vote", data=good, headers=headers).status_code == 303
        second = subprocess.run(
            [sys.executable, "-m", "gad_jax.evaluate", "human", str(directory), "--results"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode != 0
        assert "is in use by process" in second.stderr
    assert [vote["winner"] for vote in kept(directory)] == ["tie"]


@pytest.mark.parametrize("width", [1280, 390])
def test_keys_vote_in_a_browser(directory: Path, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    said: list[str] = []
    with served(directory) as (url, _), sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=300_000
        )
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(300_000)
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        page.fill("#annotator", "Ann 0b")  # letters and digits in a name are no votes
        page.keyboard.press("Enter")
        page.wait_for_selector("text=0 of 3 done")
        assert EVIL in page.text_content(".prompt")
        assert page.title() == "Which answer is better?"
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for done, key in enumerate(("1", "ArrowRight", "b"), start=1):
            page.wait_for_load_state()  # a key before the script is there is lost
            page.keyboard.press(key)
            page.wait_for_selector("button.chosen" if key == "b" else f"text={done} of 3 done")
        page.wait_for_load_state()
        page.keyboard.press("0")
        page.wait_for_selector("text=2 of 3 done")
        page.click("text=Answer 2 is better")
        page.wait_for_selector("text=Thank you, Ann 0b")
        browser.close()
    assert said == []
    votes = kept(directory)
    assert [vote["choice"] for vote in votes] == ["left", "right", "tie", "right"]
    assert votes[1]["ballot"] == votes[2]["ballot"]
    assert {vote["annotator"] for vote in votes} == {"Ann 0b"}
