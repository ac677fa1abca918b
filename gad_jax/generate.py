"""`python -m gad_jax.generate`: a student's answers to a prompt, a file, or at a prompt line."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gad_jax.base import exits
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import option

if TYPE_CHECKING:
    from gad_jax.data.chat import Chat
    from gad_jax.training.loading import Network


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
        for name in ("samples", "max_new_tokens", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")


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
    from gad_jax.distributed import sharding
    from gad_jax.training import loading

    # before the model is loaded
    if generate.out:
        exits.make_writable(Path(generate.out).absolute().parent, "--out")
        if Path(generate.out).is_dir():
            raise UserError(f"--out={generate.out} is a directory; name a file in it")
    rows = sources.read(generate.file, need_response=False) if generate.file else None
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(generate.model, mesh)
        template = network.template or "none" if generate.template == "auto" else generate.template
        chat = Chat.load(network.tokenizer, template)
        answer = Answering(generate, network, chat, mesh)
        if rows is not None:
            _answer_file(generate, rows, answer)
        elif generate.prompt:
            conversation = [{"role": "user", "content": generate.prompt}]
            print("\n\n".join(answer([conversation])[0]))
        else:
            _answer_interactively(network.origin, answer)
    return exits.Exit.OK


class Answer(NamedTuple):
    """One answer; `tokens` counts the end token, which one that was cut (not finished) lacks."""

    text: str
    tokens: int
    finished: bool


class Answering:
    """A loaded student, called with conversations; its decode weights are made once."""

    def __init__(
        self, generate: Generate, network: "Network", chat: "Chat", mesh: Any, slots: int = 0
    ):
        import jax

        from gad_jax.rollout import engine
        from gad_jax.rollout.sampling import Sampler

        self.network, self.chat, self.mesh = network, chat, mesh
        self.settings = engine.Settings(
            generate.samples,
            generate.max_new_tokens,
            chat.end_tokens,
            chat.pad_token,
            Sampler(generate.temperature, generate.top_k, generate.top_p),
            slots=slots,
        )
        self.weights = engine.prepare(network.config, network.params)
        self.key = jax.random.key(generate.seed)
        self.asked = 0

    def __call__(self, conversations: list[Any]) -> list[list[str]]:
        """Returns the answers to each conversation. Raises UserError for one that is too long."""
        prompts = self.encode(conversations)
        for prompt in prompts:
            if len(prompt) > self.longest_prompt:
                raise UserError(
                    f"a prompt has {len(prompt)} tokens, and {self.longest_prompt} fit beside "
                    f"--max_new_tokens={self.settings.max_new_tokens}; shorten it or lower that"
                )
        numbers = range(self.asked, self.asked + len(prompts))
        self.asked += len(prompts)
        return [[answer.text for answer in group] for group in self.answers(prompts, numbers)]

    @property
    def longest_prompt(self) -> int:
        """How many tokens fit before the longest answer."""
        return self.network.config.max_positions - self.settings.max_new_tokens

    def encode(self, conversations: Sequence[Any]) -> list[Any]:
        """Returns the tokens of each conversation up to where the answer begins."""
        import numpy as np

        return [np.asarray(tokens, np.int32) for tokens in self.chat.encode_prompts(conversations)]

    def answers(self, prompts: list[Any], numbers: Sequence[int]) -> list[list[Answer]]:
        """Returns the answers to each encoded prompt. What is sampled depends on the seed and the
        prompt's number, not on what is asked beside it."""
        import numpy as np

        from gad_jax.rollout import engine

        rollout = engine.generate(
            self.network.config,
            self.network.params,
            prompts,
            np.asarray(numbers, np.int32),
            self.key,
            self.settings,
            self.mesh,
            self.weights,
        )
        groups = zip(rollout.tokens, rollout.lengths, rollout.finished, strict=True)
        return [
            [
                Answer(self.chat.decode(tokens[:length].tolist()), int(length), bool(finished))
                for tokens, length, finished in zip(*group, strict=True)
            ]
            for group in groups
        ]


def _answer_file(generate: Generate, rows: Any, answer: Answering) -> None:
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
            exits.write_atomic(self.path, "\n".join(self.lines) + "\n")


def _answer_interactively(origin: str, answer: Answering) -> None:
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
