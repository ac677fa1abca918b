"""The settings of a judge: which model, which pairs, and what it may cost. Imports no jax."""

from dataclasses import dataclass
from typing import Any, Literal

from gad_jax.settings.fields import FieldError, option
from gad_jax.settings.requests import RequestSettings, api_parameters

TEACHER = "teacher"


@dataclass(frozen=True)
class Judge(RequestSettings):
    """A judge model behind an OpenAI-compatible API, as in gad_jax.collect."""

    model: str = option("", "the judge, by the API's name; empty: no judge")
    base_url: str = option("https://api.openai.com/v1", "where the API is")
    key_variable: str = option(
        "OPENAI_API_KEY", "NAME of the environment variable that holds the key; empty: no key"
    )
    protocol: Literal["both", "reference", "pairwise"] = option(
        "both",
        "reference: rates an answer and a reference (the paper's); pairwise: which is better",
    )
    reference: str = option(
        TEACHER, "whose answers are the reference: teacher, or a student's name"
    )
    baseline: str = option(
        "", "student that pairs compare the others with; empty: the first one, or the teacher"
    )
    repeats: int = option(
        2, "how often the request for a verdict that cannot be read is retried", "requests"
    )
    temperature: float | None = option(0.0, "sampling temperature; none: the API's default")
    max_new_tokens: int = option(1024, "a longer verdict is cut; 0: the API's limit", "tokens")
    parameters: str = option("", "more parameters of the API, as a JSON object")
    concurrency: int = option(16, "most requests in flight", "requests")
    timeout: float = option(120.0, "time limit of one attempt", "seconds")
    attempts: int = option(
        8, "attempts per request, not counting those that a rate limit rejects", "attempts"
    )
    max_wait: float = option(
        900.0,
        "most time that a request waits between its attempts; inf: no limit",
        "seconds",
        infinite=True,
    )
    max_total_tokens: int = option(0, "cap on the tokens of all verdicts; 0: none", "tokens")
    max_cost: float = option(0.0, "cap on the cost of all verdicts, at the prices below; 0: none")
    prompt_price: float = option(0.0, "currency per million prompt tokens")
    completion_price: float = option(0.0, "currency per million verdict tokens")
    dry_run: bool = option(False, "count verdicts, tokens and cost; send nothing")

    def __post_init__(self) -> None:
        if self.repeats < 0:
            raise FieldError("repeats", f"repeats={self.repeats} must be 0 or more")
        if self.model:
            self.check_requests()

    @property
    def sampling(self) -> dict[str, Any]:
        """The API's parameters. Raises ValueError if `parameters` is not a JSON object."""
        longest = self.max_new_tokens or None
        return api_parameters(
            {"temperature": self.temperature, "max_tokens": longest}, self.parameters
        )

    @property
    def protocols(self) -> tuple[Literal["reference", "pairwise"], ...]:
        """The protocols to judge by."""
        return ("reference", "pairwise") if self.protocol == "both" else (self.protocol,)
