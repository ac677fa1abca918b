"""MLflow with a local database: what its client reads back."""

import json
from pathlib import Path

import pytest

from gad_jax.training.trackers import mlflow
from tests.training.trackers import session


@pytest.mark.filterwarnings("default")
def test_a_resumed_run_is_one_run_and_repeats_no_step(tmp_path: Path) -> None:
    package = pytest.importorskip("mlflow", reason="needs requirements.txt of this folder")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_dir = tmp_path / "mine"
    said = session.run("mlflow", run_dir, {"MLFLOW_TRACKING_URI": uri})
    stored = json.loads((run_dir / "trackers.json").read_text())["mlflow"]
    assert f"mlflow: run {stored['id']}; `mlflow ui --backend-store-uri {uri}` shows it" in said
    client = package.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("gad-jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name) == (stored["id"], "mine")
    assert run.info.status == "FINISHED"
    assert (run.data.tags["first"], run.data.tags["size"]) == ("true", "7B")
    assert run.data.params["batch.prompts"] == "256"
    assert run.data.params["data.train"] == "https://me:[redacted]@127.0.0.1/teacher.jsonl"
    found = client.get_metric_history(stored["id"], "generator/loss")
    losses = sorted((point.step, point.value) for point in found)
    assert losses == [(step, step / 4) for step in range(1, 7)]
    assert client.get_metric_history(stored["id"], "kl/reference") == []
    texts = [item.path for item in client.list_artifacts(stored["id"], "samples")]
    assert texts == ["samples/000004-step-4.md", "samples/000006-step-6.md"]
    assert session.SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()


def test_names_and_links_are_those_that_mlflow_takes() -> None:
    assert mlflow._key("reward/größe[0]=1/mean") == "reward/gr__e_0__1/mean"
    assert mlflow._link("http://host/", "3", "ab") == "http://host/#/experiments/3/runs/ab"
    assert "--backend-store-uri mlruns" in mlflow._link("mlruns", "3", "ab")
    assert [len(part) for part in mlflow._parts([0] * 250)] == [100, 100, 50]
