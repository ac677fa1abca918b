"""The directory of files that are made once: whole or not at all."""

import pytest

from gad_jax.base import cache
from gad_jax.base.cache import create_once
from gad_jax.base.errors import UserError


def test_cache_keeps_nothing_of_an_attempt_that_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path))

    def interrupted(directory):
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_once("thing", interrupted)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]


def test_cache_clears_what_a_killed_process_left(tmp_path, monkeypatch):
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path))
    (tmp_path / ".thing.partial").mkdir()
    (tmp_path / ".thing.partial/half").touch()
    thing = create_once("thing", lambda directory: (directory / "whole").touch())
    assert [path.name for path in thing.iterdir()] == ["whole"]


def test_cache_without_room(tmp_path, monkeypatch):
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="MB free and thing needs 1000000000; free some or set"):
        create_once("thing", lambda _: None, needs_bytes=10**15)


def test_cache_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*set GAD_JAX_CACHE"):
        create_once("thing", lambda _: None)


def test_default_cache_is_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("GAD_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache" / "gad_jax"


def test_compiled_programs_are_kept_in_the_cache_or_where_jax_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("GAD_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert cache.program_dir() == tmp_path / "xla"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/shared/programs")
    assert str(cache.program_dir()) == "/shared/programs"
