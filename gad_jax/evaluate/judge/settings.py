"""The settings of a judge: whom to ask, about which pairs, and what it may cost. Imports no jax."""

from dataclasses import dataclass
from typing import Literal

from gad_jax.collect.__main__ import Collect
from gad_jax.settings.fields import option

TEACHER = "teacher"


@dataclass(frozen=True)
class Judge:
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
    reference: str = option(TEACHER, "whose answers are the reference: a student's name or teacher")
    baseline: str = option(
        "", "who the others are compared with in pairs; empty: the first student, or the teacher"
    )
    repeats: int = option(
        2, "how often a verdict that cannot be read is asked for again", "requests"
    )
    temperature: float | None = option(0.0, "sampling temperature; none: the API's default")
    max_new_tokens: int = option(1024, "a longer verdict is cut; 0: the API's limit", "tokens")
    parameters: str = option("", "more parameters of the API, as a JSON object")
    concurrency: int = option(16, "requests on their way at once, at most", "requests")
    timeout: float = option(120.0, "of one attempt", "seconds")
    attempts: int = option(8, "of one request, beside those turned away", "attempts")
    max_wait: float = option(900.0, "of one request, between its attempts", "seconds")
    max_total_tokens: int = option(0, "cap on what all verdicts cost; 0: none", "tokens")
    max_cost: float = option(0.0, "cap on what all verdicts cost, at the prices below; 0: none")
    prompt_price: float = option(0.0, "currency per million prompt tokens")
    completion_price: float = option(0.0, "currency per million verdict tokens")
    dry_run: bool = option(False, "count verdicts, tokens and cost; ask nothing")

    def __post_init__(self) -> None:
        if self.repeats < 0:
            raise ValueError(f"repeats={self.repeats} must be 0 or more")
        if self.model:
            self.collect("verdicts.jsonl")

    def collect(self, out: str) -> Collect:
        """Returns the settings with which verdicts are collected in the file `out`."""
        shared = (
            "model base_url key_variable temperature max_new_tokens parameters concurrency timeout "
            "attempts max_wait max_total_tokens max_cost prompt_price completion_price"
        )
        given = {name: getattr(self, name) for name in shared.split()}
        return Collect(prompts="answers", out=out, **given)

    @property
    def protocols(self) -> tuple[Literal["reference", "pairwise"], ...]:
        """The protocols to follow."""
        return ("reference", "pairwise") if self.protocol == "both" else (self.protocol,)
