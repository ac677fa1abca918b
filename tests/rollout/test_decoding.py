"""Slots with a fixed set of programs: capacities, and answers that outgrow them."""

import jax
import numpy as np

from gad_jax.distributed import devices
from gad_jax.rollout import prefill
from gad_jax.rollout.decoding import LiveDecoder, capacities
from gad_jax.rollout.sampling import Sampler
from tests.rollout.model import PROMPTS, Model


def test_capacities_double_up_to_the_context() -> None:
    assert capacities(4096) == (256, 512, 1024, 2048, 4096)
    assert capacities(5000) == (256, 512, 1024, 2048, 5000)
    assert capacities(383) == (383,)
    assert capacities(20) == (20,)


def test_another_capacity_changes_no_token(llama: Model) -> None:
    with jax.set_mesh(llama.mesh):
        weights = prefill.decode_copy(llama.config, llama.params)

        def draw(*needed: int) -> tuple[np.ndarray, list[int]]:
            decoder = LiveDecoder(llama.config, weights, 2, 1000, chunk=16)
            for slot, prompt in enumerate(PROMPTS[:2]):
                decoder.prompt.begin(prompt)
                while not decoder.prompt.done:
                    decoder.prompt.advance()
                decoder.insert(slot, prompt, Sampler(1.0), 7)
            drawn, sizes = [], []
            for number in needed:
                decoder.fit(number)
                sizes.append(decoder.capacity)
                drawn.append(devices.fetch(decoder.step()[0]))
            return np.stack(drawn), sizes

        expected, sizes = draw(*[20] * 8)
        assert sizes == [256] * 8
        found, sizes = draw(20, 257, 257, 700, 1000, 500, 300, 20)
        assert sizes == [256, 512, 512, 1000, 1000, 1000, 512, 256]
    np.testing.assert_array_equal(found, expected)
