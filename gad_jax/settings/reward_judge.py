"""The settings of a judge that pays the generator. Imports no jax."""

from dataclasses import dataclass
from typing import Any, Literal

from gad_jax.settings.fields import Checked, option
from gad_jax.settings.requests import RequestSettings, api_parameters

FILE = "judge.jsonl"
"""The verdicts of a run, in its directory."""


@dataclass(frozen=True)
class RewardJudge(Checked, RequestSettings):
    """A judge model behind an OpenAI-compatible API, for the term judge of the reward."""

    model: str = option("", "the judge, by the API's name")
    base_url: str = option("https://api.openai.com/v1", "where the API is")
    key_variable: str = option(
        "OPENAI_API_KEY", "NAME of the environment variable that holds the key; empty: no key"
    )
    protocol: Literal["reference", "pairwise"] = option(
        "reference",
        "reference: rates the response and the teacher's, the term is the response's share; "
        "pairwise: 1 if it is better, 0 if the teacher's is, 0.5 for a tie",
    )
    temperature: float | None = option(0.0, "sampling temperature; none: the API's default")
    max_new_tokens: int = option(
        1024, "a longer verdict is cut; 0: the API's limit", "tokens", minimum=0
    )
    parameters: str = option("", "more parameters of the API, as a JSON object")
    concurrency: int = option(16, "most requests in flight", "requests", above=0)
    timeout: float = option(120.0, "time limit of one attempt", "seconds", above=0)
    attempts: int = option(
        8, "attempts per request, not counting those that a rate limit rejects", above=0
    )
    max_wait: float = option(
        900.0, "most time that a request waits between its attempts", "seconds", minimum=0
    )
    max_total_tokens: int = option(
        0, "cap on the tokens of all verdicts of the run; 0: none", "tokens", minimum=0
    )
    max_cost: float = option(
        0.0, "cap on the cost of all verdicts, at the prices below; 0: none", minimum=0
    )
    prompt_price: float = option(0.0, "currency per million prompt tokens", minimum=0)
    completion_price: float = option(0.0, "currency per million verdict tokens", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model:
            self.check_requests()

    @property
    def sampling(self) -> dict[str, Any]:
        """The API's parameters. Raises ValueError if `parameters` is not a JSON object."""
        longest = self.max_new_tokens or None
        return api_parameters(
            {"temperature": self.temperature, "max_tokens": longest}, self.parameters
        )
