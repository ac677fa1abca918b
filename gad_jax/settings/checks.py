"""The check of generate and evaluate."""

from typing import Any

from gad_jax.settings.fields import FieldError


def require_positive(settings: Any, *names: str) -> None:
    """Raises FieldError for the first field that is not greater than 0."""
    for name in names:
        value = getattr(settings, name)
        if not value > 0:
            raise FieldError(name, f"{name}={value} must be greater than 0")
