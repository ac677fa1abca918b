"""Parts of a run that do not fit each other."""

import pytest

from gad_jax.base.errors import UserError
from tests.training.runs import run, settings


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="positions of random-tiny; lower one of them"):
        run(settings(tmp_path, "--rollout.max_new_tokens=100000"))
    with pytest.raises(UserError, match=r"mesh replica=3 .* needs .* devices, but 8 are present"):
        run(settings(tmp_path, "--mesh.replica=3"))
