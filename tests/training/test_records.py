"""The record of a checkpoint: the same, made before its arrays are written or meanwhile."""

import numpy as np
import pytest

from gad_jax.training import digest, records, restoring
from gad_jax.training.checkpoint import Checkpoints
from tests.training.checkpoint_states import make_mesh, make_state


def test_a_record_does_not_depend_on_when_it_is_made(tmp_path) -> None:
    state, texts = make_state(make_mesh()), []
    for background in (False, True):
        checkpoints = Checkpoints(tmp_path / str(background), background=background)
        meta = {"stage": "gad", "shapes": [(1, 2)]}
        checkpoints.save(7, state, meta, 0.5, {"tokens": np.arange(5)})
        meta["shapes"].append((3, 4))  # what comes later is not of this step
        checkpoints.close()
        texts.append((checkpoints.directory / "7" / "meta" / records.FILE).read_text())
    assert texts[0] == texts[1]
    record = restoring.read_record(tmp_path / "True" / "7")
    assert record["format"] == records.FORMAT
    assert record["digests"] == digest.digests(state)
    assert record["meta"] == {"stage": "gad", "shapes": [[1, 2]]}
    assert record[records.HOST] == digest.of_host({"tokens": np.arange(5)})


def test_what_json_cannot_hold_is_an_error_of_the_caller(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, background=True)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, make_state(make_mesh()), {"state": object()})
    checkpoints.close()
