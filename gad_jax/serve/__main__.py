"""`python -m gad_jax.serve`: a student that answers by OpenAI's API or by JetStream's gRPC."""

import dataclasses
import re
import sys
from typing import Literal

from gad_jax.base import exits
from gad_jax.settings import options, template_arguments
from gad_jax.settings.fields import FieldError, option


@dataclasses.dataclass(frozen=True)
class Serve:
    """Which student answers, to whom, and how many at once."""

    model: str = option(
        "smollm2-135m-instruct",
        "run directory, RUN@best, RUN@STEP, Hugging Face directory, hub id, or a built-in model",
    )
    protocol: Literal["openai", "jetstream"] = option(
        "openai", "openai: chat completions over HTTP; jetstream: JetStream's gRPC service"
    )
    name: str = option("", "what clients call the model; empty: the last part of --model")
    template: Literal["auto", "alpaca", "none"] = option(
        "auto", "wrapper of the last user message; auto: that of the run, none for other models"
    )
    chat_template_kwargs: str = option(
        "",
        template_arguments.HELP + "; empty: those of the run; {}: none. A request's own add to it",
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is every network")
    port: int = option(8000, "port to listen on; 0: a free one")
    key_variable: str = option(
        "", "NAME of the environment variable whose value clients must send as their API key"
    )
    allow_origin: str = option(
        "",
        "origins of other sites whose pages may ask, as https://example.org, several with commas; "
        "*: all",
    )
    slots: int = option(0, "requests decoded at once; 0: 8 on a CPU, 64 elsewhere", "requests")
    context: int = option(
        4096, "most of a prompt and its answer together; the model may allow less", "tokens"
    )
    max_new_tokens: int = option(1024, "most of an answer whose request sets no limit", "tokens")
    waiting: int = option(256, "requests that may wait for a slot; more are refused", "requests")
    chunk: int = option(
        0, "prompt tokens run between two tokens of others; 0: 64 on a CPU, 512 elsewhere", "tokens"
    )
    prefixes: int = option(
        8192, "tokens of earlier prompts kept for those that begin alike; 0: none", "tokens"
    )
    warm: bool = option(True, "compile all programs before the first request")
    tensor: int = option(1, "devices that share each weight matrix", "devices")
    seed: int = option(0, "seed of answers whose request sets none")

    def __post_init__(self) -> None:
        template_arguments.parse(self.chat_template_kwargs)
        for name in ("context", "max_new_tokens", "waiting", "tensor"):
            if getattr(self, name) < 1:
                raise FieldError(name, f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("slots", "chunk", "prefixes"):
            if getattr(self, name) < 0:
                raise FieldError(name, f"{name}={getattr(self, name)} must be 0 or more")
        if not 0 <= self.port <= 65535:
            raise FieldError("port", f"port={self.port} must be from 0 to 65535")
        for origin in self.origins:
            if origin not in ("*", "null") and not re.fullmatch(r"[\w+.-]+://[^\s/]+", origin):
                raise FieldError(
                    "allow_origin",
                    f"allow_origin={origin} is no origin, such as https://example.org; leave out "
                    "path and slash at its end",
                )
        if self.protocol == "jetstream":
            self._check_jetstream()

    def _check_jetstream(self) -> None:
        if self.key_variable:
            raise FieldError(
                "key_variable",
                "key_variable is for protocol=openai; JetStream's service has no keys",
            )
        if self.allow_origin:
            raise FieldError(
                "allow_origin", "allow_origin is for protocol=openai; pages cannot ask JetStream's"
            )

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins of other sites that may ask."""
        return tuple(part.strip() for part in self.allow_origin.split(",") if part.strip())

    @property
    def label(self) -> str:
        """What clients call the model."""
        return self.name or self.model.rstrip("/").rsplit("/", 1)[-1]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    serve = options.parse(
        Serve,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.serve",
        description="Serves a student: OpenAI's API and a chat page, or JetStream's gRPC.",
    )

    def run() -> int:
        from gad_jax.serve import command

        return command.run(serve)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
