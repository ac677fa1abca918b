"""`python -m gad_jax.bench NAME`: the benchmarks, one module each."""

import importlib
import sys

from gad_jax.base import exits
from gad_jax.base.errors import UserError, stop
from gad_jax.settings import fields

BENCHMARKS = {
    "update": "seconds of an update, against matrix products and a torch step",
    "rollout": "tokens per second of sampling, its occupancy, and transformers' generate",
    "scaling": "bytes that each device sends and receives, against the layout's arithmetic",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print("usage: python -m gad_jax.bench NAME [--help] [--name=value …]\n")
        print("\n".join(f"  {name:10} {text}" for name, text in BENCHMARKS.items()))
        return exits.Exit.OK
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        guess = fields.did_you_mean(name, list(BENCHMARKS))
        stop(UserError(f"{name!r} is no benchmark{guess or f'; there are {known}'}"))
    return importlib.import_module(f"gad_jax.bench.{name}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
