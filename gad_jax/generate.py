"""`python -m gad_jax.generate`: a student's answers to a prompt, a file, or at a prompt line."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.checks import require_positive
from gad_jax.settings.decoding import Decoding
from gad_jax.settings.fields import option

if TYPE_CHECKING:
    from gad_jax.rollout.answering import Responder


@dataclasses.dataclass(frozen=True)
class Generate:
    """What to answer, and how."""

    model: str = option(
        "smollm2-135m-instruct",
        "run directory, RUN/checkpoints/STEP, Hugging Face directory, hub id, or a built-in model",
    )
    prompt: str = option("", "one instruction; with neither prompt nor file, they are asked for")
    file: str = option("", "JSONL or Parquet rows with messages or prompt, as for training")
    out: str = option("", "JSONL file for the answers; empty: they are printed")
    template: Literal["auto", "alpaca", "none"] = option(
        "auto", "wrapper of the instruction; auto: a run's own, none for other models"
    )
    samples: int = option(1, "answers per prompt", "answers")
    temperature: float = option(0.0, "sampling temperature; 0 takes the likeliest token")
    top_k: int = option(0, "sample from the k likeliest tokens; 0: all", "tokens")
    top_p: float = option(1.0, "sample from the likeliest tokens of this total probability")
    max_new_tokens: int = option(256, "a longer answer is cut", "tokens")
    batch: int = option(16, "prompts of a file answered at once", "prompts")
    seed: int = option(0, "of the sampling")

    def __post_init__(self) -> None:
        if self.prompt and self.file:
            raise ValueError("prompt and file are both given; give one of them")
        require_positive(self, "batch")
        _ = self.decoding  # which checks the rest

    @property
    def decoding(self) -> Decoding:
        """How answers are drawn."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Decoding)}
        return Decoding(**shared)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    generate = options.parse(
        Generate,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.generate",
        description="Answers instructions with a student: one, a file of them, or interactively.",
    )
    return exits.run_guarded(lambda: _run(generate))


def _run(generate: Generate) -> int:
    import jax

    from gad_jax.data import sources
    from gad_jax.data.chat import Chat
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.rollout.answering import Responder
    from gad_jax.training import loading

    # before the model is loaded
    if generate.out:
        files.make_writable(Path(generate.out).absolute().parent, "--out")
        if Path(generate.out).is_dir():
            raise UserError(f"--out={generate.out} is a directory; name a file in it")
    rows = sources.read(generate.file, need_response=False) if generate.file else None
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(generate.model, mesh)
        template = network.template or "none" if generate.template == "auto" else generate.template
        chat = Chat.load(network.tokenizer, template)
        answer = Responder(network.config, network.params, chat, mesh, generate.decoding)
        if rows is not None:
            _answer_file(generate, rows, answer)
        elif generate.prompt:
            conversation = [{"role": "user", "content": generate.prompt}]
            print("\n\n".join(answer([conversation])[0]))
        else:
            _answer_interactively(network.origin, answer)
    return exits.Exit.OK


def _answer_file(generate: Generate, rows: Any, answer: "Responder") -> None:
    """Writes one line per row as soon as its batch is answered."""
    with _lines(generate.out) as write:
        for start in range(0, len(rows), generate.batch):
            batch = rows.rows[start : start + generate.batch]
            for row, answers in zip(batch, answer([r.messages for r in batch]), strict=True):
                write({"id": row.id, "messages": list(row.messages), "responses": answers})
            if generate.out:
                print(f"{start + len(batch)} of {len(rows)}", file=sys.stderr, flush=True)


class _lines:
    """JSON lines to a file that appears when complete, or to standard output."""

    def __init__(self, path: str):
        self.path = Path(path) if path else None
        self.lines: list[str] = []

    def __enter__(self) -> Any:
        return self._write

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False)
        if self.path is None:
            print(line, flush=True)
        else:
            self.lines.append(line)

    def __exit__(self, kind: Any, *_: object) -> None:
        if self.path is not None and kind is None:
            files.write_atomic(self.path, "\n".join(self.lines) + "\n")


def _answer_interactively(origin: str, answer: "Responder") -> None:
    print(f"{origin}. Each line is a new conversation; an empty one or Ctrl-D ends.")
    for line in _typed():
        for text in answer([[{"role": "user", "content": line}]])[0]:
            print(text, end="\n\n", flush=True)


def _typed() -> Iterator[str]:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


if __name__ == "__main__":
    sys.exit(main())
