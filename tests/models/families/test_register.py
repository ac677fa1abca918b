"""A family of the user's: what `register` refuses, and a model that says it has code of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.models import families, weights
from gad_jax.models.families import llama
from tests.models.networks import NETWORKS


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    families.OWN.discard("acme")
    families.FAMILIES.pop("acme", None)


def config(**fields: Any) -> dict[str, Any]:
    name = next(name for name in NETWORKS if NETWORKS[name]["model_type"] == "llama")
    return NETWORKS[name] | fields


def test_a_registered_family_is_read_and_written(tmp_path: Path) -> None:
    # classes of its own, as models with remote code have them: registered, they are not needed
    own = config(model_type="acme", auto_map={"AutoModelForCausalLM": "modeling_acme.Acme"})
    (tmp_path / "config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match="asks for code of its own"):
        weights.read_config(tmp_path)
    families.register("acme", llama)
    found = weights.read_config(tmp_path)
    assert found.family == "acme"
    assert families.read(families.write(found)) == found
    assert families.names(found) == llama.names(found)
    families.register("acme", llama)  # a cell of a notebook that runs twice


@pytest.mark.parametrize(
    ("name", "family", "said"),
    [
        ("llama", llama, "gad_jax has this family; give another model_type"),
        ("acme", SimpleNamespace(read=llama.read, write=llama.write), "has no function names"),
        ("acme", {"read": llama.read}, "has no function read"),
    ],
)
def test_what_is_no_family_is_refused(name: str, family: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        families.register(name, family)
