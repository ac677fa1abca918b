"""Whether a model has positions for the sequences of a benchmark."""

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig


def check(config: DecoderConfig, model: str, longest: int, flags: str) -> None:
    """Raises UserError where sequences of `longest` tokens, as `flags` set them, are too long."""
    if longest > config.max_positions:
        raise UserError(
            f"{flags} give sequences of {longest} tokens, and {model} has {config.max_positions} "
            "positions; lower them"
        )
