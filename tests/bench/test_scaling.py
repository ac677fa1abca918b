"""The compiled update sends what its layout needs."""

import pytest

from gad_jax.bench import scaling
from gad_jax.bench.__main__ import ScalingBench
from gad_jax.distributed import mesh
from gad_jax.distributed.mesh import SHARDS_STAY


@pytest.mark.parametrize(
    ("devices", "replica", "micro_batches"),
    [
        (1, 1, 1),
        (4, 1, 1),
        (4, 1, 3),
        *(
            pytest.param(*sizes, marks=pytest.mark.skipif(not SHARDS_STAY, reason="jax 0.11.2"))
            for sizes in ((8, 2, 3), (32, 2, 1))  # and more devices than rows
        ),
    ],
)
def test_bytes_match_the_layout(devices: int, replica: int, micro_batches: int) -> None:
    chosen = ScalingBench(2, 64, (devices,), replica, micro_batches)
    found, layout = scaling.sent(chosen, devices), scaling.by_layout(chosen, devices)
    # besides weights: the sums that show whether an updated leaf is finite
    assert layout.gathered <= found.gathered <= layout.gathered + 1000
    # besides gradients: the loss, the count of tokens, the norm of the gradient
    assert layout.gradients <= found.gradients <= layout.gradients + 1000
    assert layout.between_replicas <= found.between_replicas <= layout.between_replicas + 1000


def test_replicas_reduce_gradients_once_for_all_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mesh, "SHARDS_STAY", True)
    chosen = [ScalingBench(2, 64, (4,), replica=2, micro_batches=number) for number in (1, 2)]
    one, two = (scaling.sent(each, 4).between_replicas for each in chosen)
    assert one >= scaling.by_layout(chosen[0], 4).between_replicas
    assert two - one < 1000
