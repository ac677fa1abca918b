"""Settings of a small command, and command lines that are read or refused."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.fields import option


@dataclass(frozen=True)
class Small:
    """Settings of a command with a positional argument and no sections."""

    run: str = option(MISSING, "run directory", positional=True)
    out: str = option(MISSING, "where to write")
    sizes: tuple[int, ...] = option((1, 2), "sizes", "tokens")
    limit: int | None = option(None, "at most this many")
    folder: Path = option(Path("a"), "a path")  # noqa: RUF009  (it is a dataclasses.field)
    verbose: bool = option(False, "say more, 100%")


def read(*argv: str, kind: Any = Config, default: str | None = None) -> Any:
    return options.read(
        kind, argv, program="python -m gad_jax.x", description="Does x.", config_default=default
    )


def refusal(*argv: str, kind: Any = Config) -> str:
    with pytest.raises(UserError) as error:
        read(*argv, kind=kind)
    return str(error.value)
