"""Personas from a file, and the arithmetic of their mixture by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.world.personas import mixture
from gad_jax.world.personas.mixture import Persona

BRIEF = {"name": "brief", "share": 0.75, "system": "Be brief."}
GRAND = {"name": "grand", "share": 0.25, "system": "Be grand."}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_personas_of_a_file(tmp_path: Path) -> None:
    found = mixture.read(write(tmp_path / "p.jsonl", BRIEF, GRAND))
    assert found == (Persona("brief", 0.75, "Be brief."), Persona("grand", 0.25, "Be grand."))
    assert mixture.read("") == mixture.PERSONAS
    assert sum(persona.share for persona in mixture.PERSONAS) == pytest.approx(1)


def test_rounded_shares_are_made_to_sum_to_one(tmp_path: Path) -> None:
    thirds = [BRIEF | {"name": str(number), "share": 0.33} for number in range(3)]
    path = Path(write(tmp_path / "p.jsonl", *thirds))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save it
    assert [persona.share for persona in mixture.read(str(path))] == [pytest.approx(1 / 3)] * 3


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([BRIEF], "has 1 personas (brief); give two or more"),
        ([BRIEF, BRIEF | {"share": 0.25}], "give two or more, each with a name of its own"),
        ([BRIEF, GRAND | {"share": 0.3}], "the shares sum to 1.05; make them sum to 1"),
        ([BRIEF, GRAND | {"share": 1.25}], "p.jsonl:2: share=1.25; it must be between 0 and 1"),
        ([BRIEF, GRAND | {"share": "0.25"}], "p.jsonl:2: share='0.25'; it must be a number"),
        ([BRIEF, GRAND | {"system": ""}], "p.jsonl:2: system=''; it must be a text that is not"),
        ([BRIEF, GRAND | {"extra": 1}], "p.jsonl:2 has name, share, system, extra; give name"),
        ([[1, 2]], "p.jsonl:1 has list; give name, share and system"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, rows: list[object], said: str) -> None:
    path = write(tmp_path / "p.jsonl", *rows)
    with pytest.raises(UserError) as error:
        mixture.read(path)
    assert said in str(error.value)


def test_what_is_no_json_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("name: brief\n")
    with pytest.raises(UserError, match="is no JSON"):
        mixture.read(str(tmp_path / "p.jsonl"))
    with pytest.raises(UserError, match="cannot be read"):
        mixture.read(str(tmp_path))


def test_the_system_prompt_comes_before_that_of_the_row() -> None:
    persona = Persona("brief", 1, "Be brief.")
    asked = {"role": "user", "content": "Why?"}
    assert persona.conversation([asked]) == [{"role": "system", "content": "Be brief."}, asked]
    own = {"role": "system", "content": "Rhyme."}
    assert persona.conversation([own, asked]) == [
        {"role": "system", "content": "Be brief.\n\nRhyme."},
        asked,
    ]


def test_mixture_and_posterior_by_hand() -> None:
    conditional = np.log([[0.2, 0.4], [0.1, 0.0001]])
    joint = mixture.joint(conditional, [Persona("a", 0.75, "a"), Persona("b", 0.25, "b")])
    np.testing.assert_allclose(np.exp(mixture.log_mixture(joint)), [0.25, 0.075025])
    np.testing.assert_allclose(mixture.posterior(joint)[0], [0.6, 0.4])
    # far below what an exponential holds
    np.testing.assert_allclose(mixture.posterior(joint - 5000)[0], [0.6, 0.4])
    assert mixture.effective(np.asarray([0.5, 0.5, 0])) == pytest.approx(2)
    assert mixture.effective(np.asarray([1.0, 0.0])) == 1
    assert mixture.effective(np.asarray([0.9, 0.1])) == pytest.approx(
        math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    )
