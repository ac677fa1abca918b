"""trackio: a local database, or the Space or server that TRACKIO_SPACE_ID or _SERVER_URL names."""

import importlib
import secrets
from collections.abc import Mapping
from typing import Any

from gad_jax.training.trackers.service import About, Outcome


class Run:
    """A run of trackio. Its name is what it is found by, so it has an ending of its own."""

    def __init__(self, about: About) -> None:
        trackio: Any = importlib.import_module("trackio")
        self.id = about.id or f"{about.name}-{secrets.token_hex(2)}"
        self._markdown = trackio.Markdown
        self._run = trackio.init(
            project=about.project,
            name=self.id,
            config={**about.settings, "tags": list(about.tags)},
            resume="allow",
            embed=False,
        )
        place = self._run.url  # a Space or a server
        where = (
            place
            if place and place.startswith("http")
            else f"https://huggingface.co/spaces/{place}"
        )
        self.link = where if place else f"`trackio show --project {about.project}` shows {self.id}"

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Adds a text to the reports of the run."""
        self._run.log({"samples": self._markdown(f"### {name}\n\n{markdown}")}, step=step)

    def close(self, outcome: Outcome) -> None:
        """Waits until all is written."""
        self._run.finish()
