"""The settings of `python -m gad_jax.collect`."""

import dataclasses
from typing import Any

from gad_jax.settings import template_arguments
from gad_jax.settings.fields import FieldError, option, section
from gad_jax.settings.requests import RequestSettings, api_parameters
from gad_jax.settings.sections import Columns

LOCAL = "local:"
"""Prefix of a teacher that this program runs itself."""

_BATCH = ("batch_requests", "poll_seconds")
_LOCAL_PARAMETERS = ("top_k", "seed")
_NAMED = {"temperature", "top_p", "max_tokens", "chat_template_kwargs"}
_LOCAL_LONGEST = 1024


@dataclasses.dataclass(frozen=True)
class Collect(RequestSettings):
    """Which prompts go to which teacher, and what the responses may cost."""

    prompts: str = option(
        dataclasses.MISSING,
        "JSON, CSV, Parquet, .txt (a prompt per line), a directory or pattern, or hub dataset",
        location=True,
    )
    out: str = option(
        dataclasses.MISSING,
        "JSONL file of responses; those that it holds are not requested again",
        location=True,
    )
    data: Columns = section(Columns, "columns of the prompts' file")
    teacher: str = option(
        "api",
        "api, or local:MODEL: a directory, hub id or built-in model that runs here, without key",
    )
    model: str = option("", "the teacher, by the API's name")
    base_url: str = option("https://api.openai.com/v1", "where the API is")
    key_variable: str = option(
        "OPENAI_API_KEY", "NAME of the environment variable that holds the key; empty: no key"
    )
    system: str = option("", "system prompt for the teacher; the student never sees it")
    samples: int = option(1, "responses per prompt", "responses")
    temperature: float | None = option(None, "sampling temperature; none: the API's default")
    top_p: float | None = option(
        None,
        "sample from the most likely tokens of this total probability; none: the API's default",
    )
    max_new_tokens: int = option(
        0,
        "a longer response is cut (max_tokens of the API); 0: the API's limit, 1024 if local",
        "tokens",
    )
    parameters: str = option("", "more parameters of the API, as a JSON object")
    chat_template_kwargs: str = option(
        "", template_arguments.HELP + "; sent to an API in the request, as vLLM and SGLang read it"
    )
    concurrency: int = option(16, "most requests in flight; slots of a local teacher", "requests")
    batch: bool = option(
        False, "use the provider's batch mode: cheaper, with responses within a day"
    )
    batch_requests: int = option(5000, "most requests of one batch", "requests")
    poll_seconds: float = option(
        60.0, "time between two status requests for the batches", "seconds"
    )
    timeout: float = option(600.0, "time limit of one attempt", "seconds")
    attempts: int = option(
        8, "attempts per request, not counting those that a rate limit rejects", "attempts"
    )
    max_wait: float = option(
        900.0,
        "most time that a request waits between its attempts; inf: no limit",
        "seconds",
        infinite=True,
    )
    retry_refused: bool = option(
        False, "ask again for prompts that the API refused in an earlier run"
    )
    max_requests: int = option(0, "cap on the responses in the file; 0: none", "responses")
    max_total_tokens: int = option(0, "cap on the tokens paid for the file; 0: none", "tokens")
    max_cost: float = option(0.0, "cap on the cost of the file, at the prices below; 0: none")
    prompt_price: float = option(0.0, "currency per million prompt tokens")
    completion_price: float = option(0.0, "currency per million response tokens")
    dry_run: bool = option(False, "count prompts, tokens and cost; send and write nothing")
    tokenizer: str = option(
        "", "model whose tokenizer counts in a dry run; empty: 4 bytes count as a token"
    )
    skip_invalid: bool = option(False, "skip and count malformed prompts instead of stopping")

    def __post_init__(self) -> None:
        for name in ("prompts", "out"):
            if not getattr(self, name).strip():
                raise FieldError(name, f"{name} must not be empty")
        self._check_teacher()
        for name in ("samples", *_BATCH):
            if getattr(self, name) <= 0:
                raise FieldError(name, f"{name}={getattr(self, name)} must be greater than 0")
        if self.max_requests < 0:
            raise FieldError("max_requests", f"max_requests={self.max_requests} must be 0 or more")
        self.check_requests()
        if self.samples > 1 and self.temperature == 0:
            raise FieldError(
                "samples",
                f"samples={self.samples} at temperature=0 would all be the same",
                "temperature",
            )

    def _check_teacher(self) -> None:
        if self.teacher != "api" and not self.local:
            raise FieldError("teacher", f"teacher={self.teacher!r} must be api or {LOCAL}MODEL")
        if bool(self.local) == bool(self.model.strip()):
            raise FieldError(
                "model",
                "model is for a teacher behind an API; leave it out with teacher=local:MODEL"
                if self.local
                else "model must not be empty: the teacher, by the API's name",
            )
        if not self.local:
            return
        if self.batch:
            raise FieldError(
                "batch", "batch is for a teacher behind an API; a local one answers at once"
            )
        for name in ("max_total_tokens", "max_cost", "prompt_price", "completion_price"):
            if getattr(self, name):
                raise FieldError(name, f"{name} is for a teacher behind an API, which has a price")
        unknown = set(self.sampling) - {*_NAMED, *_LOCAL_PARAMETERS}
        if unknown:
            raise FieldError(
                "parameters",
                f"parameters: {', '.join(sorted(unknown))} is not known to a local teacher; it has "
                f"{', '.join(_LOCAL_PARAMETERS)}",
            )
        if not isinstance(self.sampling.get("chat_template_kwargs", {}), dict):
            raise FieldError("parameters", "parameters: chat_template_kwargs must be a JSON object")
        for name in set(self.sampling) & set(_LOCAL_PARAMETERS):
            value = self.sampling[name]
            if type(value) is not int or value < 0:
                raise FieldError("parameters", f"parameters: {name} must be an integer, 0 or more")

    @property
    def local(self) -> str:
        """The model of a local teacher; empty for an API."""
        return self.teacher.removeprefix(LOCAL) if self.teacher.startswith(LOCAL) else ""

    @property
    def teacher_name(self) -> str:
        """The teacher's name in the lines of the file."""
        return self.teacher if self.local else self.model

    @property
    def sampling(self) -> dict[str, Any]:
        """The API's parameters. Raises ValueError if `parameters` is not a JSON object."""
        longest = self.max_new_tokens or (_LOCAL_LONGEST if self.local else None)
        named = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": longest}
        arguments = template_arguments.parse(self.chat_template_kwargs)
        named |= {"chat_template_kwargs": arguments or None}
        found = api_parameters(named, self.parameters)
        if arguments and found["chat_template_kwargs"] != arguments:
            raise FieldError(
                "chat_template_kwargs",
                "chat_template_kwargs is given twice, here and in parameters; keep one",
                "parameters",
            )
        return found
