"""`python -m gad_jax.plan`: does a run fit hardware you do not have, and how long is a step?"""

import dataclasses
import sys
from collections.abc import Sequence

from gad_jax.base import console, exits, next_command
from gad_jax.distributed import targets
from gad_jax.settings import options
from gad_jax.settings.config import Config, default_file
from gad_jax.settings.fields import Checked, FieldError, option, section

DESCRIPTION = (
    "Ahead-of-time compiles every program of a run for hardware you do not have. Reports per "
    "device the memory, the communication and whether it fits, with advice if it does not; "
    "without --target, the smallest GPU that holds the run."
)


@dataclasses.dataclass(frozen=True)
class PlanOptions(Checked):
    """The plan's own settings; those of the run are the same as in `python -m gad_jax.train`."""

    target: str = option(
        "",
        "hardware: h100:2x8 (nodes × GPUs), rtx4090:1x1, v5e:4x4, v5p:2x2x4, v6e:4x4, cpu:8; "
        "empty: the smallest GPU that holds the run",
    )
    prompt_tokens: float = option(
        0.0,
        "mean length of prompts, before the cut at the run's limit; 0: 150, or half of that limit "
        "where that is less",
        "tokens",
    )
    response_tokens: float = option(
        0.0, "mean length of responses, likewise; 0: 385, or half of that limit", "tokens"
    )
    rows: int = option(
        0, "training rows, for the hours of the run; 0: those of a local file", "rows", minimum=0
    )
    price_per_hour: float = option(
        0.0, "price of one device, for the cost of the run; 0: not known", minimum=0
    )
    kernels: bool = option(
        False, "also count the kernels, bytes, graphs and host waits of each program (GPU targets)"
    )
    json: bool = option(False, "print JSON instead of tables")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_tokens", "response_tokens"):
            value = getattr(self, name)
            if value < 1 and value != 0:
                raise FieldError(name, f"{name}={value} must be 1 or more, or 0")
        kind = self.target.partition(":")[0]
        if self.kernels and (not kind or kind == "cpu" or kind.startswith("v")):
            raise FieldError(
                "kernels",
                f"kernels are counted in programs for one kind of GPU, and target={self.target!r} "
                "names none; give one, such as --target=h100:1x1",
                "target",
            )


@dataclasses.dataclass(frozen=True)
class PlanCommand(Config):
    """A run's settings and the plan's."""

    plan: PlanOptions = section(PlanOptions, "the plan; --target and --json are short forms")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0 if the run fits, 3 if it does not."""
    given = sys.argv[1:] if argv is None else argv
    settings = options.parse(
        PlanCommand,
        [_long(flag) for flag in given],
        program="python -m gad_jax.plan",
        description=DESCRIPTION,
        config_default=default_file(given),
        shows_progress=True,
    )

    def run() -> int:
        console.start_logs()
        target = targets.parse(settings.plan.target) if settings.plan.target else None
        # jax reads these variables when the body imports it.
        targets.prepare_environment(target)
        from gad_jax.plan import command, tables

        code = command.run(settings, target)
        if code == exits.Exit.OK:
            flags = _without_plan(given)
            mesh = settings.mesh
            if target is None and mesh.asks_several:
                flags = [*_without(flags, "--mesh."), "--mesh.replica=1", "--mesh.fsdp=1"]
                flags += ["--mesh.tensor=1"] if mesh.tensor > 1 else []
            flags.append("--dry_run")
            to_stderr = settings.plan.json
            width = 0 if to_stderr else tables.width()
            next_command.say("train", *flags, to_stderr=to_stderr, width=width)
        return code

    return exits.run_guarded(run)


def _without_plan(given: Sequence[str]) -> list[str]:
    """Returns the run's own flags."""
    kept = [_long(each) for each in given]
    switches = (f.name for f in dataclasses.fields(PlanOptions) if isinstance(f.default, bool))
    for flag in ("--dry_run", *(f"--plan.{name}" for name in switches)):
        kept = next_command.without(kept, flag)  # whose value need not follow
    return _without(kept, "--plan.")


def _without(given: Sequence[str], prefix: str) -> list[str]:
    """Returns the flags whose names do not begin so; a value may follow its flag."""
    kept: list[str] = []
    skip = False
    for argument in given:
        name, equals, _ = argument.partition("=")
        if not skip and not name.startswith(prefix):
            kept.append(argument)
        skip = not skip and name.startswith(prefix) and not equals
    return kept


def _long(flag: str) -> str:
    """Returns --plan.target for --target, and so on; other flags unchanged."""
    name, equals, value = flag.partition("=")
    known = {f"--{field.name}": f"--plan.{field.name}" for field in dataclasses.fields(PlanOptions)}
    return known.get(name, name) + equals + value


if __name__ == "__main__":
    sys.exit(main())
