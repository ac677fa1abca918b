"""Checks that several settings share."""

from typing import Any


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value > 0, f"{name}={value} must be greater than 0")


def require_at_least_zero(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value >= 0, f"{name}={value} must be 0 or more")


def require_text(settings: Any, *names: str) -> None:
    for name in names:
        require(getattr(settings, name).strip() != "", f"{name} must not be empty")
