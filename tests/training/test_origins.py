"""Runs that begin with the networks of another run."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.training import digest, loading, origins, setup
from tests.training.runs import run, settings, start

SHORT = ("--checkpoint.every=1", "--data.heldout=", "--stage=gad")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run with the checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp("source") / "run"
    start(settings(directory, *SHORT))
    return directory


def network(run, part):
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        return jax.device_get(loading.load_from_run(run, part, mesh).params)


def begin(config):
    """Returns the weights that a run begins with, of generator and discriminator."""
    Path(config.run_dir).mkdir()
    setup.claim(config)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        found = jax.device_get((trainer.state.generator, trainer.load_discriminator()))
    trainer.close()
    return found


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    return True


def test_both_networks_are_taken_with_the_score_head(source, tmp_path, capsys):
    flags = (f"--student.path={source}@1", f"--discriminator.path={source}", "--gad.steps=1")
    config = settings(tmp_path / "run", *SHORT, *flags)
    generator, discriminator = begin(config)
    said = capsys.readouterr().out
    assert f"student: the generator of {source}, step 1 (gad)\n" in said
    assert f"discriminator: that of {source}, step 2 (gad), with its score head\n" in said
    assert same(generator, network(f"{source}@1", "generator"))
    assert same(discriminator, network(source, "discriminator"))

    # What was taken is pinned, and the new run needs the other one no more once it has begun.
    start(config)
    assert json.loads((tmp_path / "run" / origins.FILE).read_text())["student"]["step"] == 1
    card = (tmp_path / "run" / "export" / "student" / "README.md").read_text()
    assert "`run`, step 1 (gad)" in card
    assert str(source.parent) not in card
    source.rename(tmp_path / "away")
    try:
        assert run(config).step == 1
        assert network(tmp_path / "run", "generator")
    finally:
        (tmp_path / "away").rename(source)


def test_without_a_discriminator_the_student_gets_a_new_head(source, tmp_path, capsys):
    generator, discriminator = begin(
        settings(tmp_path / "run", *SHORT, f"--student.path={source}@last")
    )
    assert "the same weights with a new score head; --discriminator.path=" in (
        capsys.readouterr().out
    )
    theirs = network(source, "generator")
    assert same(generator, theirs)
    assert same(
        {k: v for k, v in discriminator.items() if k != "score"},
        {k: v for k, v in theirs.items() if k != "head"},
    )
    assert not np.array_equal(
        discriminator["score"]["kernel"], network(source, "discriminator")["score"]["kernel"]
    )


def test_what_does_not_fit_is_refused_by_name(source, tmp_path):
    seqkd = tmp_path / "seqkd"
    shutil.copytree(source, seqkd)
    for step in ("1", "2"):  # as a run of that stage would have saved them
        path = seqkd / "checkpoints" / step / "meta" / "record.json"
        record = digest.unsealed(path.read_bytes())
        record["meta"]["stage"] = "seqkd"
        path.write_text(json.dumps(digest.sealed(record)))
    text = (seqkd / "config.yaml").read_text()
    (seqkd / "config.yaml").write_text(text.replace("stage: gad", "stage: seqkd"))
    (tmp_path / "run").mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(source / "config.yaml", empty)
    for flag, said in (
        (f"--discriminator.path={seqkd}@1", r"step 1 \(seqkd\) has no discriminator; name a run"),
        (f"--student.path={source}@7", r"no checkpoint of step 7; it has \[1, 2\]"),
        (f"--student.path={source}@0", r"no checkpoint of step 0; it has \[1, 2\]"),
        (f"--student.path={source}@newest", r"'newest' names no checkpoint; write RUN, RUN@best"),
        (f"--student.path={source}@best", r"no checkpoint of this run has an evaluation of accep"),
        (f"--student.path={tmp_path}@best", r"is not a run directory: it has no config.yaml"),
        (f"--student.path={empty}", r"the run has no complete checkpoint; let it save one"),
    ):
        with pytest.raises(UserError, match=said) as error:
            setup.claim(settings(tmp_path / "run", *SHORT, flag))
        assert flag in str(error.value) or "names no checkpoint" in said
    with pytest.raises(UserError, match="that is this run itself"):
        setup.claim(settings(empty, *SHORT, f"--student.path={empty}"))


def test_a_lost_record_of_the_origins_is_said(source, tmp_path):
    config = settings(tmp_path / "run", *SHORT, f"--student.path={source}", "--gad.steps=1")
    start(config)
    path = tmp_path / "run" / origins.FILE
    for content, said in (("{", "is damaged"), ("{}", "is damaged"), (None, "is missing")):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UserError, match=f"origins.json {said}"):
            setup.claim(config)
