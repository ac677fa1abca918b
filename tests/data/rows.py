"""Rows as the tests of pipeline and epochs make them."""

from gad_jax.data.sources.rows import Row, Rows

LIMITS = {"max_prompt_tokens": 200, "max_response_tokens": 100}


def rows_of(*pairs, **options):
    """Rows of (prompt, response or responses)."""
    rows = [
        Row(({"role": "user", "content": prompt},), (y,) if isinstance(y, str) else y, f"row {n}")
        for n, (prompt, y) in enumerate(pairs)
    ]
    return Rows("rows.jsonl", tuple(rows), {}, **options)


def numbered(count):
    return rows_of(*((f"question {n}", f"answer {n}") for n in range(count)))


def user(text):
    return [{"role": "user", "content": text}]
