"""The shapes of networks by name."""

import json
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.models import source, weights
from gad_jax.models.costs import parameters
from gad_jax.plan import networks


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.49),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
        ("Qwen/Qwen2.5-3B-Instruct", 3.09),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-14B-Instruct", 14.77),
        ("Qwen/Qwen2.5-32B-Instruct", 32.76),
        ("Qwen/Qwen2.5-72B-Instruct", 72.71),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.21),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
    ],
)
def test_built_in_shapes_have_the_published_parameters(name: str, billions: float) -> None:
    assert parameters(networks.read(name)) / 1e9 == pytest.approx(billions, abs=0.005)


def test_a_directory_needs_config_json_alone(tmp_path: Path) -> None:
    tiny = source.resolve("random-tiny")
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    assert networks.read(str(tmp_path)) == weights.read_config(tiny) == networks.read("random-tiny")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_a_run_has_the_shape_of_the_model_that_it_goes_back_to(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("student:\n  path: random-tiny\n")
    assert networks.read(f"{tmp_path}@best") == networks.read("random-tiny")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'random-tiny'"):
        networks.read("random-tyni")
