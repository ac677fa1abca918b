"""The sampled lengths of a step, and the rows that they fill."""

import numpy as np
import pytest

from gad_jax.distributed import targets
from gad_jax.plan import workload
from gad_jax.settings.config import Config
from gad_jax.settings.discriminator import Discriminator
from gad_jax.settings.sections import Batch, Data, Rollout

CONFIG = Config(
    stage="gad",
    data=Data(max_prompt_tokens=64),
    batch=Batch(prompts=256, micro_batch_prompts=64, row_tokens=512),
    rollout=Rollout(samples=4, max_new_tokens=256),
    discriminator=Discriminator(replay_share=0.5),
)
TARGET = targets.parse("cpu:8")


@pytest.fixture(scope="module")
def work() -> workload.Workload:
    return workload.draw(CONFIG, workload.LognormalLengths(15.0, 40.0), TARGET)


def test_lengths_have_the_means_and_keep_the_limits(work: workload.Workload) -> None:
    assert work.responses.shape == (256, 4)
    # 1024 lognormal lengths of spread 0.8: the standard error of their mean is about 3 %
    assert work.responses.mean() == pytest.approx(40, rel=0.1)
    assert work.prompts.mean() == pytest.approx(15, rel=0.2)
    assert work.prompts.min() >= 1
    assert work.prompts.max() <= 64
    assert work.responses.max() <= 256


def test_rows_hold_every_token_of_the_step(work: workload.Workload) -> None:
    # The responses of a group share their prompt, unless the group is split over rows.
    least = int(work.prompts.sum() + work.responses.sum())
    most = int(4 * work.prompts.sum() + work.responses.sum())
    assert least <= np.count_nonzero(work.samples.tokens) <= most
    assert work.samples.tokens.shape[0] == 4  # micro-batches
    assert work.alone.tokens.shape[0] == 4
    assert work.teacher.tokens.shape[0] == 1  # no larger than a micro-batch of pairs
    assert work.displaced is not None
    assert np.count_nonzero(work.displaced.mask) == work.responses[:, -2:].sum()
    assert 0 < work.padding < work.rectangle_padding < 1


def test_every_response_is_decoded_and_the_draw_repeats(work: workload.Workload) -> None:
    steps = 8 * sum(call.steps * call.slots for call in work.calls)
    assert steps >= work.responses.sum()
    assert work.iterations >= work.responses.max()
    again = workload.draw(CONFIG, workload.LognormalLengths(15.0, 40.0), TARGET)
    np.testing.assert_array_equal(again.responses, work.responses)
