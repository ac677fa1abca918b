"""Rows from a dataset of the Hugging Face Hub, as `datasets` would give them."""

import sys
from types import SimpleNamespace

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources

GOOD = {"prompt": "Name a fruit.", "teacher_response": "An apple."}


FIX = "; drop the row"


def test_hub_dataset(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [GOOD, GOOD | {"teacher_response": ""}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = sources.read("org/name", split="test", skip_invalid=True)
    assert asked == [("org/name", "test")]
    assert [row.id for row in rows] == ["org/name:1"]
    with pytest.raises(UserError, match=f"^org/name:2: 'teacher_response' is empty{FIX}"):
        sources.read("org/name")


def test_hub_dataset_that_cannot_be_loaded(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("Couldn't reach the Hub\nlong traceback")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(UserError) as caught:
        sources.read("org/name")
    assert str(caught.value) == (
        "org/name: neither a file nor a hub dataset that can be loaded now (Couldn't reach the "
        "Hub); give a downloaded file"
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="hub datasets need the package datasets; install it"):
        sources.read("org/name")


def test_the_configuration_of_a_hub_dataset(monkeypatch):
    asked = []

    def load_dataset(name, *config, split):
        asked.append((name, *config, split))
        if not config:
            raise ValueError("Config name is missing.\nPlease pick one")
        return [GOOD]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert len(sources.read("org/name:all:train_sft")) == 1
    assert len(sources.read("org/name:smol-x")) == 1
    with pytest.raises(UserError, match=r"give a downloaded file, or name one as ORG/NAME:CONFIG:"):
        sources.read("org/name:test")
    assert asked == [
        ("org/name", "all", "train_sft"),
        ("org/name", "smol-x", "train"),
        ("org/name", "test"),
    ]
