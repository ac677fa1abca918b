"""What runs cost, from rows of metrics by hand."""

import json
from pathlib import Path

import pytest

from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.world.personas import compute


def test_positions_are_divided_by_what_each_network_reads(tmp_path: Path) -> None:
    config = options.read(
        Config, ["--batch.prompts=4", "--rollout.samples=3"], program="", description=""
    )
    (tmp_path / "config.yaml").write_text(options.to_yaml(config))
    both = {"generator/gradient_norm": 1.0, "discriminator/gradient_norm": 1.0}
    update = {"seconds/step": 30.0, "seconds/update": 2.0, "tokens_per_second/update": 50.0}
    sampled = {"response/length": 10.0, "tokens_per_second/rollout": 9.0}
    rows = [
        {"stage": "seqkd", "generator/gradient_norm": 1.0} | update,
        {"stage": "warmup", "discriminator/gradient_norm": 1.0} | update | sampled,
        {"stage": "warmup"} | both | update | sampled,
        {"stage": "gad"} | both | update | sampled,
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = compute.of_run(tmp_path, teacher_tokens=20.0)
    assert found["minutes"] == 2
    assert found["sampled"] == 3 * 4 * 3 * 10
    # of 100 positions each: G reads 20 of 20, none, 20 of 70, 30 of 80 response tokens
    assert found["generator"] == pytest.approx(100 * (1 + 0 + 20 / 70 + 30 / 80))
    assert found["generator"] + found["discriminator"] == pytest.approx(400)
    assert compute.together([found, found])["minutes"] == 4
    assert compute.together([]) == compute.NOTHING
