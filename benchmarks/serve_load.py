"""Tokens per second of a running server, and the time to the first token.

python -m gad_jax.serve --model smollm2-135m-instruct &
python benchmarks/serve_load.py --clients 16
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2


def ask(url: str, number: int, tokens: int) -> tuple[int, float]:
    """Returns the number of tokens of an answer, and the seconds until the first."""
    prompt = f"Write a long story about the number {number}."
    body = {
        "model": httpx2.get(f"{url}/models").json()["data"][0]["id"],
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0.7,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, answered = time.perf_counter(), 0.0, 0
    with httpx2.stream("POST", f"{url}/chat/completions", json=body, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            part = json.loads(line.removeprefix("data: "))
            if part["choices"] and part["choices"][0]["delta"].get("content"):
                first = first or time.perf_counter() - started
            answered = part.get("usage", {}).get("completion_tokens", answered)
    return answered, first


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4, help="the first one is not counted")
    given = parser.parse_args()
    rates, waits = [], []
    with ThreadPoolExecutor(given.clients) as threads:
        for round_ in range(given.rounds):
            started = time.perf_counter()
            jobs = [
                threads.submit(ask, given.url, number, given.tokens)
                for number in range(given.clients)
            ]
            answers = [job.result() for job in jobs]
            rate = sum(tokens for tokens, _ in answers) / (time.perf_counter() - started)
            if round_:
                rates.append(rate)
                waits += [first for _, first in answers]
    rate, wait = statistics.median(rates), statistics.median(waits)
    print(
        f"{given.clients} clients, answers of {given.tokens} tokens: {rate:.0f} tokens/s, "
        f"first token after {wait:.2f} s (medians)"
    )


if __name__ == "__main__":
    main()
