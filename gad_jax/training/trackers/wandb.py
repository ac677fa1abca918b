"""Weights & Biases: online, or with WANDB_MODE=offline files for `wandb sync`."""

import html
import importlib
import os
import secrets
from collections.abc import Mapping
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.training.trackers.service import About, Outcome

EXIT_CODES: dict[Outcome, int] = {"finished": 0, "stopped": 0, "failed": 1}


class Run:
    """A run of W&B. Its files are in RUN/wandb."""

    def __init__(self, about: About) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.id = about.id or secrets.token_hex(4)
        self._html = wandb.Html
        self._run = wandb.init(
            project=about.project,
            name=about.name,
            tags=about.tags,
            config=dict(about.settings),
            allow_val_change=True,  # some settings may change when a run resumes
            dir=str(about.directory),
            id=self.id,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                console="off",  # the console is ours: rich asks whether it is a terminal
                silent=True,
                init_timeout=30,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,  # the command line, which may hold a secret
            ),
        )
        # A row of our own for each call: W&B drops what comes for a step that it has passed.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        # An offline run has no page, and warns when it is asked for one.
        files = f"{about.directory}/wandb/offline-run-*"
        self.link = f"offline; `wandb sync {files}` uploads" if self._run.offline else self._run.url

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row with the metrics of a step."""
        self._run.log({**metrics, "step": step})

    def text(self, step: int, name: str, markdown: str) -> None:
        """Adds a text to the panel `samples`."""
        page = f"<h3>step {step}: {html.escape(name)}</h3><pre style='white-space: pre-wrap'>"
        page += f"{html.escape(markdown)}</pre>"
        self._run.log({"samples": self._html(page, inject=False), "step": step})

    def close(self, outcome: Outcome) -> None:
        """Waits until all is uploaded."""
        self._run.finish(exit_code=EXIT_CODES[outcome])


def require_login() -> None:
    """Raises UserError where runs go to the server and there is no key: W&B would ask for one."""
    if os.environ.get("WANDB_API_KEY"):  # else `login` asks the server whose it is
        return
    wandb: Any = importlib.import_module("wandb")
    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            "--tracking.to=wandb: nobody is logged in; run `wandb login`, set WANDB_API_KEY, or "
            "give WANDB_MODE=offline for files to upload later"
        )
