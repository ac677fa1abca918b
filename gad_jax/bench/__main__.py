"""`python -m gad_jax.bench NAME`: the benchmarks, one module each."""

import dataclasses
import importlib
import sys
from typing import Literal, NamedTuple

from gad_jax.base import exits
from gad_jax.base.errors import UserError, stop
from gad_jax.distributed import targets
from gad_jax.settings import fields, options
from gad_jax.settings.fields import FieldError, option


@dataclasses.dataclass(frozen=True)
class UpdateBench:
    """What is measured."""

    model: str = option("smollm2-135m-instruct", "model, as in --student.path")
    rows: int = option(8, "rows of a step", "rows")
    row_tokens: int = option(256, "length of a row", "tokens")
    steps: int = option(5, "steps to time, after two that are not", "steps")
    remat: Literal["full", "dots", "none"] = option("dots", "as --student.remat")
    unroll: bool = option(False, "as --student.unroll")
    matmul: Literal["auto", "bfloat16", "float8"] = option("auto", "as --student.matmul")
    torch: bool = option(True, "also time a torch step, if torch is installed")

    def __post_init__(self) -> None:
        _require_one(self, "rows", "steps")
        if self.row_tokens < 2:
            raise FieldError(
                "row_tokens",
                f"row_tokens={self.row_tokens} must be 2 or more: a prompt and a target",
            )


@dataclasses.dataclass(frozen=True)
class RolloutBench:
    """What is measured."""

    model: str = option("smollm2-135m-instruct", "model, as in --student.path")
    prompt_tokens: int = option(32, "tokens of a prompt", "tokens")
    uniform: str = option("8,32", "responses at once, each of --response_tokens", "responses")
    response_tokens: int = option(128, "tokens of a response in the uniform mix", "tokens")
    responses: int = option(256, "responses of the heavy-tailed mix; 0: leave it out", "responses")
    slots: int = option(16, "slots of the heavy-tailed mix", "responses")
    mean: float = option(60.0, "mean of the lognormal lengths", "tokens")
    spread: float = option(0.8, "standard deviation of their logarithm")
    longest: int = option(512, "a longer response is cut", "tokens")
    repeats: int = option(3, "timed repeats, after one that compiles")
    weights: Literal["auto", "bfloat16", "int8"] = option("auto", "as --rollout.weights")
    torch: bool = option(True, "also time transformers' generate, if torch is installed")
    gguf: str = option(
        "",
        "also time llama.cpp on this GGUF file of the model (package llama-cpp-python)",
        location=True,
    )

    def __post_init__(self) -> None:
        _require_one(self, "prompt_tokens", "response_tokens", "slots", "longest", "repeats")
        for name in ("responses", "spread"):
            if getattr(self, name) < 0:
                raise FieldError(name, f"{name}={getattr(self, name)} must be 0 or more")
        if self.mean <= 0:
            raise FieldError("mean", f"mean={self.mean} must be greater than 0")
        if not all(size.isdecimal() and int(size) > 0 for size in self.sizes):
            raise FieldError(
                "uniform", f"uniform={self.uniform!r} must be numbers with commas, as 8,32"
            )
        if not self.sizes and not self.responses:
            raise FieldError(
                "uniform",
                "uniform names no number and responses=0, so nothing is measured; set one of them",
                "responses",
            )

    @property
    def sizes(self) -> list[str]:
        """The numbers of responses at once."""
        return [size for size in self.uniform.split(",") if size]


@dataclasses.dataclass(frozen=True)
class ScalingBench:
    """The network and the devices."""

    layers: int = option(3, "layers of the network", "layers")
    width: int = option(128, "its width; 4 heads, mlp of twice the width, 512 tokens", "features")
    devices: tuple[int, ...] = option((1, 2, 4, 8), "numbers of devices", "devices")
    replica: int = option(1, "replicas, each with the weights split over its devices", "replicas")
    micro_batches: int = option(1, "micro-batches of the update", "micro-batches")

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 8 or self.width % 8:
            raise FieldError(
                "layers",
                f"layers={self.layers} must be 1 or more and width={self.width} a multiple of 8",
                "width",
            )
        if not self.devices:
            raise FieldError("devices", "devices names no number; give some with commas, as 1,2")
        for count in self.devices:
            if count > targets.CPU_DEVICES:
                most = f"must be {targets.CPU_DEVICES} or less"
                raise FieldError("devices", f"devices={count} {most}")
            if count < 1 or self.width % count:
                raise FieldError(
                    "devices", f"devices={count} does not divide width={self.width}", "width"
                )
            if self.replica < 1 or count % self.replica:
                raise FieldError(
                    "replica", f"replica={self.replica} does not divide devices={count}", "devices"
                )
        _require_one(self, "micro_batches")


def _require_one(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise FieldError(name, f"{name}={getattr(settings, name)} must be 1 or more")


class Benchmark(NamedTuple):
    """A benchmark: its settings, and what it says of itself in the list and in its own help."""

    settings: type
    line: str
    description: str


BENCHMARKS = {
    "update": Benchmark(
        UpdateBench,
        "seconds of an update, against large matmuls and a torch step",
        "Seconds of a training step, as a ratio to large matmuls and to torch.",
    ),
    "rollout": Benchmark(
        RolloutBench,
        "tokens per second of sampling, its occupancy, and transformers' generate",
        "Tokens per second of sampling, its occupancy and its share of the roofline.",
    ),
    "scaling": Benchmark(
        ScalingBench,
        "bytes that each device sends and receives, against the layout's arithmetic",
        "Bytes that each device sends in an update, against the layout's arithmetic.",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print("usage: python -m gad_jax.bench NAME [--help] [--name=value …]\n")
        print("\n".join(f"  {name:10} {one.line}" for name, one in BENCHMARKS.items()))
        return exits.Exit.OK
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        guess = fields.did_you_mean(name, list(BENCHMARKS))
        stop(UserError(f"{name!r} is no benchmark{guess or f'; there are {known}'}"))
    chosen = options.parse(
        BENCHMARKS[name].settings,
        rest,
        program=f"python -m gad_jax.bench {name}",
        description=BENCHMARKS[name].description,
    )

    def run() -> int:
        if isinstance(chosen, ScalingBench):
            # jax reads the number of simulated devices when the body imports it.
            targets.prepare_environment(targets.parse(f"cpu:{max(chosen.devices)}"))
        return importlib.import_module(f"gad_jax.bench.{name}").run(chosen)

    return exits.run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
