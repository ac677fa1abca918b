"""MLflow: the server or store that MLFLOW_TRACKING_URI names, else MLflow's own default."""

import importlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gad_jax.training.trackers.service import About, Outcome, sample_file

STATUS: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PARAMETERS = 100
"""MLflow takes so many in one call, each of at most `LONGEST` characters."""
LONGEST = 6000


class Run:
    """A run of MLflow, in the experiment that is called as the project."""

    def __init__(self, about: About) -> None:
        # Its own retries take minutes, each with a warning; what fails here is sent again later.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        for name, level in (("urllib3.connectionpool", logging.ERROR), ("mlflow", logging.WARNING)):
            logging.getLogger(name).setLevel(level)
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client = client = mlflow.MlflowClient()
        if about.id:
            run = client.get_run(about.id)
            client.update_run(about.id, status="RUNNING")
        else:
            found = client.get_experiment_by_name(about.project)
            experiment = found.experiment_id if found else client.create_experiment(about.project)
            pairs = (tag.partition("=") for tag in about.tags)
            tags = {name: value or "true" for name, _, value in pairs}
            run = client.create_run(experiment, run_name=about.name, tags=tags)
        self.id = run.info.run_id
        self._log_settings(about.settings, run.data.params)
        self.link = _link(mlflow.get_tracking_uri(), run.info.experiment_id, self.id)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        now = int(time.time() * 1000)
        rows = [self._entities.Metric(_key(x), y, now, step) for x, y in metrics.items()]
        self._client.log_batch(self.id, metrics=rows)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Adds a file to the artifacts, in samples/."""
        self._client.log_text(self.id, markdown, f"samples/{sample_file(step, name)}")

    def close(self, outcome: Outcome) -> None:
        """Sets the status of the run."""
        self._client.set_terminated(self.id, status=STATUS[outcome])

    def _log_settings(self, settings: Mapping[str, Any], known: Mapping[str, str]) -> None:
        """Adds settings as parameters. One that changed becomes a tag: parameters cannot change."""
        given = {_key(name): str(value)[:LONGEST] for name, value in settings.items()}
        new = [self._entities.Param(x, y) for x, y in given.items() if x not in known]
        for some in _parts(new):
            self._client.log_batch(self.id, params=some)
        for name, value in given.items():
            if known.get(name, value) != value:
                self._client.set_tag(self.id, f"changed.{name}", value)


def _parts(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), PARAMETERS):
        yield items[start : start + PARAMETERS]


def _key(name: str) -> str:
    """Returns a name of characters that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)


def _link(uri: str, experiment: str, run: str) -> str:
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}"
    return f"run {run}; `mlflow ui --backend-store-uri {uri}` shows it"
