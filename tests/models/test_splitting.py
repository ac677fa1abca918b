"""Which meshes a network can be split over."""

import dataclasses
import math
import re

import jax
import pytest
from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import families, splitting
from tests.models.networks import NETWORKS

NETWORK = families.read(NETWORKS["llama-biases"])


def mesh(*axes: int) -> Mesh:
    return make_mesh(*axes, devices=jax.devices()[: math.prod(axes)])


@pytest.mark.parametrize(
    ("axes", "sizes", "sentence"),
    [
        ((1, 4, 1), {"width": 30}, "fsdp=4 of the mesh does not divide the 30 features"),
        ((1, 1, 2), {"mlp_width": 15}, "tensor=2 of the mesh does not divide the 15 mlp features"),
        ((1, 1, 2), {"vocabulary": 63}, "does not divide the 63 tokens of the vocabulary"),
        ((1, 1, 8), {}, "tensor=8 of the mesh does not divide the"),
    ],
)
def test_what_is_not_divided_is_named(
    axes: tuple[int, int, int], sizes: dict[str, int], sentence: str
) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        splitting.check(dataclasses.replace(NETWORK, **sizes), mesh(*axes))


def test_divisors_are_taken() -> None:
    splitting.check(NETWORK, mesh(2, 2, 2))
