"""Loads the networks of a run and writes them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from gad_jax import __version__
from gad_jax.base import exits, files, next_command
from gad_jax.distributed.mesh import make_mesh
from gad_jax.training import exporting, loading, pushing, selection

if TYPE_CHECKING:
    from gad_jax.export.__main__ import Export

PARTS = {"student": "generator", "discriminator": "discriminator"}
"""What users call a network → what checkpoints call it."""


def run(export: "Export") -> int:
    """Writes the chosen networks; returns the exit code."""
    directory = selection.parse(export.run).run
    out = Path(export.out) if export.out else directory / "export"
    if selection.is_run(directory):
        files.make_writable(out, "--out")
    chosen = PARTS if export.part == "all" else {export.part: PARTS[export.part]}
    repositories = pushing.repositories(export.push, list(chosen)) if export.push else {}
    for repository in repositories.values():
        pushing.create(repository, export.public)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        for name, part in chosen.items():
            network = loading.load_from_run(export.run, part, mesh)
            config = network.config
            if export.dtype != "same":
                config = dataclasses.replace(config, stored_dtype=export.dtype)
            chat = network.load_chat()
            assert network.made is not None  # it comes from a run
            made = exporting.Export(
                config, network.params, chat, network.made, directory, network.adapter
            )
            exporting.write(out / name, made)
            print(f"{out / name}: {name} of {network.origin}, {config.stored_dtype}", flush=True)
            adapter = out / f"{name}-adapter"
            has_adapter = exporting.write_adapter(adapter, made)
            if has_adapter:
                print(f"{adapter}: its adapters, for PEFT", flush=True)
            if name in repositories:
                message = f"{name} of step {network.made.step}, gad-jax {__version__}"
                print(pushing.upload(repositories[name], out / name, message), flush=True)
                if has_adapter:
                    print(
                        pushing.upload_adapter(repositories[name], adapter, message, export.public)
                    )
    if "student" in chosen:
        next_command.say("generate", "--model", str(out / "student"))
    return exits.Exit.OK
