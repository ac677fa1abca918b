"""What the compiled update sends is what its layout must send."""

import pytest

from gad_jax.bench import scaling


@pytest.mark.parametrize("devices", [1, 4])
def test_bytes_match_the_layout(devices: int) -> None:
    chosen = scaling.Scaling(layers=2, width=64)
    gathered, rest = scaling.sent(chosen, devices)
    weights, gradients = scaling.by_layout(chosen, devices)
    assert gathered == weights
    # beside gradients: the loss, the count of tokens, the norm of the gradient
    assert gradients <= rest <= gradients + 1000
