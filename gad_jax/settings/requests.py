"""What settings of requests to an API have in common: its parameters, caps and prices."""

import abc
import json
from collections.abc import Mapping
from typing import Any

from gad_jax.settings.fields import FieldError

_OURS = ("model", "messages", "n", "stream")
LONGEST = ("max_completion_tokens", "max_tokens")
"""What the API calls the limit of a response, the new name and the old one."""


class RequestSettings(abc.ABC):
    """What all such settings have; each kind declares the fields with its own help texts."""

    base_url: str
    model: str
    key_variable: str
    max_new_tokens: int
    concurrency: int
    timeout: float
    attempts: int
    max_wait: float
    max_total_tokens: int
    max_cost: float
    prompt_price: float
    completion_price: float

    @property
    @abc.abstractmethod
    def sampling(self) -> dict[str, Any]:
        """The API's parameters. Raises ValueError for those that cannot be sent."""

    def check_requests(self) -> None:
        """Raises ValueError, which begins with a field's name, for values that do not fit."""
        for name in ("concurrency", "attempts", "timeout"):
            if getattr(self, name) <= 0:
                raise FieldError(name, f"{name}={getattr(self, name)} must be greater than 0")
        limits = ("max_new_tokens", "max_wait", "max_total_tokens", "max_cost")
        for name in (*limits, "prompt_price", "completion_price"):
            if getattr(self, name) < 0:
                raise FieldError(name, f"{name}={getattr(self, name)} must be 0 or more")
        if self.max_cost and not (self.prompt_price or self.completion_price):
            raise FieldError(
                "max_cost", "max_cost needs prices; give prompt_price and completion_price"
            )
        longest = longest_response(self.sampling)  # also checks `parameters`
        if (self.max_total_tokens or self.max_cost) and not longest:
            raise FieldError(
                "max_new_tokens",
                "max_new_tokens is needed for a cap on tokens or cost: without it one response "
                "may take any number",
            )


def api_parameters(named: Mapping[str, Any], more: str) -> dict[str, Any]:
    """Returns the parameters of a request: those of `named` that are not None, then `more`, a JSON
    object. Raises ValueError if `more` is not one, or sets what has a flag."""
    return {name: value for name, value in named.items() if value is not None} | _read(more)


def longest_response(parameters: Mapping[str, Any]) -> int:
    """Returns the most tokens that a response can have; 0 if the parameters do not say."""
    return next((parameters[name] for name in LONGEST if name in parameters), 0)


def _read(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise FieldError(
            "parameters", 'parameters must be a JSON object, such as {"presence_penalty": 0.5}'
        )
    for name in _OURS:
        if name in given:
            raise FieldError(
                "parameters", f"parameters: {name} has a flag of its own or is not for you to set"
            )
    for name in LONGEST:
        if name in given and not (type(given[name]) is int and given[name] > 0):
            raise FieldError("parameters", f"parameters: {name} must be an integer greater than 0")
    return given
