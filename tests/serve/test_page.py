"""The chat page in a browser, over HTTP: what is said, stopped and refused; nothing of it runs."""

import os
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.serve import api, page
from gad_jax.serve.guard import Access
from tests.serve import fakes

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
NAME = "<b>student</b>"
KEY = "a key"


def say(prompt: str) -> str | None:
    """Returns an answer that tells what the student has seen."""
    turns = prompt.count("user\n")
    last = prompt.rpartition("user\n")[2].partition("\n")[0].removesuffix("<|im_end|>")
    if "fault" in last:
        return None
    if "long" in last:
        return "word " * 400
    return f"<think>This is turn {turns}.</think>You said {last}. {EVIL}"


def application(directory: Path, key: str = "") -> tuple[Any, fakes.Decoding]:
    write_tiny(directory)
    decoding = fakes.Decoding(fakes.student(directory, 4096), say, pause=0.001)
    terms = api.Terms(NAME, key, 3000, 0)
    return api.make(decoding, terms, Access.of("127.0.0.1", "127.0.0.1")), decoding


def test_its_files_come_from_here_alone(tmp_path: Path) -> None:
    with fakes.listen(application(tmp_path)[0]) as url, httpx2.Client(base_url=url) as client:
        for path in page.FILES:
            response = client.get(path)
            assert response.status_code == 200
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'")
            assert "unsafe" not in policy
            assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in client.get("/chat.js").text


def test_a_chat_in_a_browser(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    served, decoding = application(tmp_path, KEY)
    pictures = os.environ.get("PICTURES")
    with fakes.listen(served) as url, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=300_000
        )
        for width, scheme in ((1280, "light"), (390, "dark")):
            tab = browser.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme, locale="en"
            )
            tab.set_default_timeout(300_000)
            _chat(tab, url, decoding, width, pictures and f"{pictures}/{width}-{scheme}")
            tab.close()
        browser.close()


def _chat(tab: Any, url: str, decoding: fakes.Decoding, width: int, picture: str | None) -> None:
    def send(text: str) -> None:
        tab.fill("#message", text)
        tab.keyboard.press("Enter")

    def take(name: str) -> None:
        if picture:
            tab.screenshot(path=f"{picture}-{name}.png")

    said: list[str] = []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(url)
    tab.wait_for_selector("#settings[open]")  # the key is asked for
    send("hello")
    tab.wait_for_selector("text=the API key is missing or wrong")
    assert tab.input_value("#message") == "hello"  # to be sent once more
    take("key")
    tab.fill("#key", KEY)
    tab.fill("#system", "Be kind.")
    tab.fill("#temperature", "0")
    tab.click("summary:text('Settings')")
    tab.click("#new")
    send("first")
    tab.wait_for_selector("text=You said first.")
    tab.wait_for_selector("#send:visible")
    tab.fill("#message", "second\nline")
    tab.click("#send")
    tab.wait_for_selector("text=You said second")
    tab.wait_for_selector("#send:visible")
    assert tab.text_content("#model") == NAME
    answers = tab.locator(".turn.assistant > .text").all_text_contents()
    assert answers == [f"You said first. {EVIL}", f"You said second. {EVIL}"]
    assert not tab.is_visible("text=This is turn 2.")
    tab.click("summary >> nth=2")  # of the second answer's thoughts
    tab.wait_for_selector("text=This is turn 2.")
    take("answers")
    prompt = decoding.student.chat.tokenizer.decode(decoding.seen[-1].prompt.tolist())
    assert prompt.startswith("<|im_start|>system\nBe kind.")
    assert "assistant\nYou said first." in prompt
    assert "turn 1" not in prompt  # thoughts stay behind
    assert decoding.seen[-1].sampler.greedy

    send("a long one")
    tab.wait_for_selector("text=word word word")
    take("long")
    tab.click("#stop")
    tab.wait_for_selector("text=Stopped.")
    tab.wait_for_selector("#send:visible")
    assert decoding.seen[-1].cancelled.wait(60)
    assert decoding.seen[-1].answered < 2000
    send("a fault")
    tab.wait_for_selector("text=the server could not continue the answer")
    take("fault")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.title() == f"Chat with {NAME}"
    tab.click("#new")
    assert tab.locator(".turn").count() == 0
    assert said == []
