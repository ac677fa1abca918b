"""`python -m gad_jax.export RUN`: a run's networks as Hugging Face directories."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from gad_jax.base import exits, files
from gad_jax.settings import options
from gad_jax.settings.fields import option


@dataclasses.dataclass(frozen=True)
class Export:
    """What to write, and where."""

    run: str = option(
        dataclasses.MISSING, "run directory, or one step: RUN/checkpoints/STEP", positional=True
    )
    out: str = option("", "directory to write into; empty: RUN/export")
    part: Literal["all", "student", "discriminator"] = option("all", "which network")
    dtype: Literal["same", "float32", "bfloat16"] = option(
        "same", "of the weights; same: as in the model that the run started from"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    export = options.parse(
        Export,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.export",
        description=(
            "Writes a run's student, and its discriminator as a reward model with one label, as "
            "directories that transformers and vLLM load."
        ),
    )
    return exits.run_guarded(lambda: _export(export))


def _export(export: Export) -> int:
    import jax

    from gad_jax.data.chat import Chat
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.models import weights
    from gad_jax.training import loading

    run, _ = loading.split_step(export.run)
    out = Path(export.out) if export.out else run / "export"
    if loading.is_run(run):
        files.make_writable(out, "--out")
    parts = {"student": "generator", "discriminator": "discriminator"}
    chosen = parts if export.part == "all" else {export.part: parts[export.part]}
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        for name, part in chosen.items():
            network = loading.load_from_run(export.run, part, mesh)
            config = network.config
            if export.dtype != "same":
                config = dataclasses.replace(config, stored_dtype=export.dtype)
            chat = Chat.load(network.tokenizer, network.template)
            weights.save(out / name, config, network.params, chat.tokenizer, chat.end_tokens)
            print(f"{out / name}: {name} of {network.origin}, {config.stored_dtype}", flush=True)
    return exits.Exit.OK


if __name__ == "__main__":
    sys.exit(main())
