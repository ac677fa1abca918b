"""The settings of `python -m gad_jax.collect`."""

import dataclasses
import json
from typing import Any

from gad_jax.settings.fields import option

_OURS = ("model", "messages", "n", "stream")
_LONGEST = ("max_completion_tokens", "max_tokens")  # the API's names, new and old

LOCAL = "local:"
"""What a teacher that this program runs itself begins with."""

_BATCH = ("batch_requests", "poll_seconds")
_LOCAL_PARAMETERS = ("top_k", "seed")
_LOCAL_LONGEST = 1024


@dataclasses.dataclass(frozen=True)
class Collect:
    """What is asked, whom, and what it may cost."""

    prompts: str = option(
        dataclasses.MISSING, "JSONL, Parquet, .txt (a prompt per line), directory or hub dataset"
    )
    out: str = option(
        dataclasses.MISSING, "JSONL file of responses; what it holds already is not asked again"
    )
    teacher: str = option(
        "api",
        "api, or local:MODEL, a directory, hub id or built-in model that answers here, without key",
    )
    model: str = option("", "the teacher, by the API's name")
    base_url: str = option("https://api.openai.com/v1", "where the API is")
    key_variable: str = option(
        "OPENAI_API_KEY", "NAME of the environment variable that holds the key; empty: no key"
    )
    system: str = option("", "system prompt for the teacher; the student never sees it")
    samples: int = option(1, "responses per prompt", "responses")
    temperature: float | None = option(None, "sampling temperature; none: the API's default")
    top_p: float | None = option(None, "likeliest tokens to sample from; none: the API's default")
    max_new_tokens: int = option(
        0,
        "a longer response is cut (max_tokens of the API); 0: the API's limit, 1024 if local",
        "tokens",
    )
    parameters: str = option("", "more parameters of the API, as a JSON object")
    concurrency: int = option(
        16, "requests on their way at once, at most; of a local teacher, slots", "requests"
    )
    batch: bool = option(
        False, "ask through the provider's batch mode: cheaper, answered within a day"
    )
    batch_requests: int = option(5000, "of one batch, at most", "requests")
    poll_seconds: float = option(60.0, "between two looks at the batches", "seconds")
    timeout: float = option(600.0, "of one attempt", "seconds")
    attempts: int = option(8, "of one request, beside those turned away", "attempts")
    max_wait: float = option(900.0, "of one request, between its attempts", "seconds")
    max_requests: int = option(0, "cap on what the file holds; 0: none", "responses")
    max_total_tokens: int = option(0, "cap on what the file cost; 0: none", "tokens")
    max_cost: float = option(0.0, "cap on what the file cost, at the prices below; 0: none")
    prompt_price: float = option(0.0, "currency per million prompt tokens")
    completion_price: float = option(0.0, "currency per million response tokens")
    dry_run: bool = option(False, "count prompts, tokens and cost; ask and write nothing")
    tokenizer: str = option(
        "", "model whose tokenizer counts in a dry run; empty: 4 bytes are taken for a token"
    )
    skip_invalid: bool = option(False, "skip and count malformed prompts instead of stopping")

    def __post_init__(self) -> None:
        for name in ("prompts", "out"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
        self._check_teacher()
        for name in ("samples", "concurrency", "attempts", "timeout", *_BATCH):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("max_new_tokens", "max_wait", "max_requests", "max_total_tokens", "max_cost"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
        for name in ("prompt_price", "completion_price"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.max_cost and not (self.prompt_price or self.completion_price):
            raise ValueError("max_cost needs prices; give prompt_price and completion_price")
        longest = self.longest_answer  # which reads `parameters`
        if (self.max_total_tokens or self.max_cost) and not longest:
            raise ValueError(
                "max_new_tokens is needed for a cap on tokens or cost: without it one response "
                "may take any number"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples={self.samples} at temperature=0 would all be the same")

    def _check_teacher(self) -> None:
        if self.teacher != "api" and not self.local:
            raise ValueError(f"teacher={self.teacher!r} must be api or {LOCAL}MODEL")
        if bool(self.local) == bool(self.model.strip()):
            raise ValueError(
                "model is for a teacher behind an API; leave it out beside teacher=local:MODEL"
                if self.local
                else "model must not be empty: the teacher, by the API's name"
            )
        if not self.local:
            return
        if self.batch:
            raise ValueError("batch is for a teacher behind an API; a local one answers at once")
        for name in ("max_total_tokens", "max_cost", "prompt_price", "completion_price"):
            if getattr(self, name):
                raise ValueError(f"{name} is for a teacher behind an API, which has a price")
        unknown = set(self.sampling) - {"temperature", "top_p", "max_tokens", *_LOCAL_PARAMETERS}
        if unknown:
            raise ValueError(
                f"parameters: {', '.join(sorted(unknown))} is not known to a local teacher; it has "
                f"{', '.join(_LOCAL_PARAMETERS)}"
            )
        for name in set(self.sampling) & set(_LOCAL_PARAMETERS):
            value = self.sampling[name]
            if type(value) is not int or value < 0:
                raise ValueError(f"parameters: {name} must be an integer, 0 or more")

    @property
    def local(self) -> str:
        """The model of a local teacher; empty for an API."""
        return self.teacher.removeprefix(LOCAL) if self.teacher.startswith(LOCAL) else ""

    @property
    def teacher_name(self) -> str:
        """What the teacher is called in the lines."""
        return self.teacher if self.local else self.model

    @property
    def sampling(self) -> dict[str, Any]:
        """The API's parameters. Raises ValueError for `parameters` that are none."""
        given = _read_parameters(self.parameters)
        named = {"temperature": self.temperature, "top_p": self.top_p}
        named["max_tokens"] = self.max_new_tokens or (_LOCAL_LONGEST if self.local else None)
        return {name: value for name, value in named.items() if value is not None} | given

    @property
    def longest_answer(self) -> int:
        """The most tokens that a response can have; 0 where that is not known."""
        sampling = self.sampling
        return next((sampling[name] for name in _LONGEST if name in sampling), 0)


def _read_parameters(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError('parameters must be a JSON object, such as {"presence_penalty": 0.5}')
    for name in _OURS:
        if name in given:
            raise ValueError(f"parameters: {name} has a flag of its own or is not for you to set")
    for name in _LONGEST:
        if name in given and not (type(given[name]) is int and given[name] > 0):
            raise ValueError(f"parameters: {name} must be an integer greater than 0")
    return given
