"""A running server under load: time to the first token, tokens per second, and its memory.

python -m gad_jax.serve --model smollm2-135m-instruct &
python benchmarks/serve_load.py --clients 16                        # equal answers, in rounds
python benchmarks/serve_load.py --mixed --clients 200 --pid $!      # mixed lengths, some hang up

With --mixed all clients come at once. Prompts have 10 to about 1,500 words, half of them behind one
system prompt; answers have 4 to 96 tokens. A tenth hangs up: half of those before the first token.
"""

import argparse
import json
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

SYSTEM = "You answer briefly and politely, and you never mention the weather. " * 12
WORDS = ("stone", "river", "under", "the", "old", "bridge", "carries", "seven", "boats", "to")


@dataclass(frozen=True)
class Client:
    """What a client asks; it hangs up after so many seconds or parts of its answer (0: never)."""

    messages: list[dict[str, str]]
    tokens: int
    seed: int
    patience: float = 0
    parts: int = 0


@dataclass
class Heard:
    """What a client got, and the seconds until the first token (0: none came)."""

    tokens: int = 0
    first: float = 0
    left: bool = False


def equal(count: int, tokens: int) -> list[Client]:
    """Returns clients whose prompts and answers have one length."""
    texts = [f"Write a long story about the number {number}." for number in range(count)]
    return [Client([{"role": "user", "content": t}], tokens, n) for n, t in enumerate(texts)]


def mixed(count: int, seed: int) -> list[Client]:
    """Returns clients of mixed lengths, a tenth of which hang up; the same for the same seed."""
    draw = random.Random(seed)
    clients = []
    for number in range(count):
        length = min(int(draw.lognormvariate(4.0, 1.2)) + 10, 1500)
        text = " ".join(draw.choice(WORDS) for _ in range(length))
        messages = [{"role": "user", "content": f"{number}: tell me what follows. {text}"}]
        if draw.random() < 0.5:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        tokens = draw.choice((4, 16, 32, 48, 64, 96))
        leaving = {} if number % 10 else {("patience", "parts")[number // 10 % 2]: 2}
        clients.append(Client(messages, tokens, number, **leaving))
    return clients


def ask(url: str, model: str, client: Client) -> Heard:
    """Asks as a client does."""
    body: dict[str, Any] = {
        "model": model,
        "messages": client.messages,
        "max_tokens": client.tokens,
        "temperature": 0.7,
        "seed": client.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    heard, started, parts = Heard(), time.perf_counter(), 0
    timeout = httpx2.Timeout(3600, read=client.patience or 3600)
    try:
        with httpx2.stream("POST", f"{url}/chat/completions", json=body, timeout=timeout) as got:
            got.raise_for_status()
            for line in got.iter_lines():
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line.removeprefix("data: "))
                if part["choices"] and part["choices"][0]["delta"].get("content"):
                    heard.first = heard.first or time.perf_counter() - started
                    parts += 1
                heard.tokens = (part.get("usage") or {}).get("completion_tokens", heard.tokens)
                if client.parts and parts >= client.parts:
                    heard.left = True
                    return heard
    except httpx2.ReadTimeout:
        heard.left = True
    return heard


def memory(pid: int) -> str:
    """Returns the resident memory of a process."""
    if not pid:
        return ""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return f", server {int(fields['VmRSS'].split()[0]) / 2**20:.2f} GiB"


def play(url: str, model: str, clients: list[Client]) -> tuple[float, list[float], int]:
    """Returns tokens per second, the seconds to the first tokens, and how many hung up."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as threads:
        heard = list(threads.map(lambda client: ask(url, model, client), clients))
    rate = sum(one.tokens for one in heard) / (time.perf_counter() - started)
    firsts = [one.first for one in heard if one.first and not one.left]
    return rate, firsts, sum(one.left for one in heard)


def percentiles(firsts: list[float]) -> str:
    """Returns what there is to say of the seconds to the first tokens."""
    if not firsts:
        return "no first token came"
    if len(firsts) == 1:
        return f"first token after {firsts[0]:.1f} s"
    cuts = statistics.quantiles(firsts, n=20)
    return f"first token after {cuts[9]:.1f} s (p50), {cuts[18]:.1f} s (p95)"


def medians(played: list[tuple[float, list[float], int]]) -> str:
    """Returns the rates and waits of all rounds but the first; of the only one, if it is."""
    counted = played[1:] or played
    rate = statistics.median(rate for rate, _, _ in counted)
    waits = [first for _, firsts, _ in counted for first in firsts]
    wait = f"first token after {statistics.median(waits):.2f} s" if waits else percentiles(waits)
    return f"{rate:.0f} tokens/s, {wait}" + (" (medians)" if len(played) > 1 else "")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of equal answers")
    parser.add_argument("--rounds", type=int, default=4, help="the first of several is dropped")
    parser.add_argument("--mixed", action="store_true", help="mixed lengths, one round at once")
    parser.add_argument("--seed", type=int, default=0, help="of the mixed clients")
    parser.add_argument("--pid", type=int, default=0, help="the server's process, for its memory")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be 1 or more")
    model = httpx2.get(f"{given.url}/models").json()["data"][0]["id"]
    if given.mixed:
        clients = mixed(given.clients, given.seed)
        before = memory(given.pid)
        rate, firsts, left = play(given.url, model, clients)
        after = memory(given.pid)
        print(
            f"{given.clients} mixed clients, {left} hung up: {rate:.0f} tokens/s, "
            f"{percentiles(firsts)}{before} before{after} after"
        )
        return
    played = [
        play(given.url, model, equal(given.clients, given.tokens)) for _ in range(given.rounds)
    ]
    print(
        f"{given.clients} clients, answers of {given.tokens} tokens: {medians(played)}"
        f"{memory(given.pid)}"
    )


if __name__ == "__main__":
    main()
