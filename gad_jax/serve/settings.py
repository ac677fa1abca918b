"""`python -m gad_jax.serve`: its settings. Imports no jax."""

import dataclasses
from typing import Literal

from gad_jax.settings.fields import option


@dataclasses.dataclass(frozen=True)
class Serve:
    """Which student answers, to whom, and how many at once."""

    model: str = option(
        "smollm2-135m-instruct",
        "run directory, RUN/checkpoints/STEP, Hugging Face directory, hub id, or a built-in model",
    )
    protocol: Literal["openai", "jetstream"] = option(
        "openai", "openai: chat completions over HTTP; jetstream: JetStream's gRPC service"
    )
    name: str = option("", "what clients call the model; empty: the last part of --model")
    template: Literal["auto", "alpaca", "none"] = option(
        "auto", "wrapper of the last user message; auto: a run's own, none for other models"
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 is every network")
    port: int = option(8000, "to listen on; 0: a free one")
    key_variable: str = option(
        "", "NAME of the environment variable whose value clients must send as their API key"
    )
    slots: int = option(0, "requests decoded at once; 0: 8 on a CPU, 64 elsewhere", "requests")
    context: int = option(
        4096, "of a prompt and its answer together, as far as the model goes", "tokens"
    )
    max_new_tokens: int = option(1024, "of an answer whose request does not say", "tokens")
    waiting: int = option(256, "requests that may wait for a slot; more are refused", "requests")
    tensor: int = option(1, "devices that share each weight matrix", "devices")
    seed: int = option(0, "of answers whose request brings none")

    def __post_init__(self) -> None:
        for name in ("context", "max_new_tokens", "waiting", "tensor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.slots < 0:
            raise ValueError(f"slots={self.slots} must be 0 or more")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port} must be from 0 to 65535")
        if self.protocol == "jetstream" and self.key_variable:
            raise ValueError("key_variable is for protocol=openai; JetStream's service has no keys")

    @property
    def label(self) -> str:
        """What clients call the model."""
        return self.name or self.model.rstrip("/").rsplit("/", 1)[-1]
