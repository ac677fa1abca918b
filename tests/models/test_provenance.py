"""Where weights are from: only what a directory states, never what a path says."""

from pathlib import Path

import pytest

from gad_jax.models import provenance
from gad_jax.models.builtin import smollm2


def readme(directory: Path, front: str) -> None:
    (directory / "README.md").write_text(f"---\n{front}\n---\n# A model\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: mit", {"license": "mit"}),
        (
            "license: other\nlicense_name: qwen\nlicense_link: LICENSE",
            {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
        ),
        ("license: unknown", {}),
        ("language: en", {}),
        ("license: [", {}),
        ("- a", {}),
        ("a: &a [x]\nb: &b [*a, *a]\nlicense: mit", {}),
    ],
)
def test_the_licence_of_a_readme(tmp_path: Path, front: str, expected: dict[str, str]) -> None:
    readme(tmp_path, front)
    assert provenance.licence("x", tmp_path) == expected


def test_the_licence_of_a_licence_file(tmp_path: Path) -> None:
    assert provenance.licence("x", tmp_path) == {}
    (tmp_path / "README.md").write_text("No front matter, license: mit")
    assert provenance.licence("x", tmp_path) == {}
    path = tmp_path / "LICENSE.txt"
    for text, name in {
        "  Apache License\n   Version 2.0, January 2004": "apache-2.0",
        "MIT License\n\nPermission is hereby granted, free of charge, to any": "mit",
        "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT": "llama3.1",
        "Gemma Terms of Use": "gemma",
    }.items():
        path.write_text(text)
        assert provenance.licence("x", tmp_path) == {"license": name}
    path.write_text("All rights reserved.")
    other = {"license": "other", "license_name": "LICENSE.txt", "license_link": "LICENSE.txt"}
    assert provenance.licence("x", tmp_path) == other
    readme(tmp_path, "license: cc-by-4.0")
    assert provenance.licence("x", tmp_path) == {"license": "cc-by-4.0"}


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    readme(tmp_path, "base_model: org/first")
    assert provenance.hub_id(smollm2.NAME, tmp_path) == smollm2.HUB_ID
    assert provenance.licence(smollm2.NAME, tmp_path) == {"license": smollm2.LICENCE}
    assert provenance.hub_id("Qwen/Qwen2.5-0.5B", tmp_path) == "Qwen/Qwen2.5-0.5B"
    # a card of someone else names the model before this one
    assert provenance.hub_id(str(tmp_path), tmp_path) is None
    (tmp_path / provenance.RECORD).write_text("{}")
    assert provenance.hub_id(str(tmp_path), tmp_path) == "org/first"
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "local").mkdir()
    (tmp_path / "README.md").unlink()
    assert provenance.hub_id("org/local", tmp_path) is None
