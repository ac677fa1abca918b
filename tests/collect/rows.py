"""Rows of teacher text with one fault or none each."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def lmsys(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "content": [{"role": "user", "content": f"question {n // 2}"}],
            "teacher_response": f"answer {n}",
            "category": "chat",
            "id": n,
        }
        for n in range(start, start + count)
    ]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
