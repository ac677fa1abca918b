"""Transfers read from HLO text: by hand, and from a program whose layout says what it must send."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.distributed import hlo, sharding
from gad_jax.distributed.mesh import make_mesh

TEXT = """HloModule m
%body.1 (p: f32[4]) -> f32[4] {
  %g = f32[64,32]{1,0} all-gather(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%p), body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %s = (bf16[8]{0}, bf16[64]{0}) all-gather-start(%p), replica_groups={{0,1,2,3,4,5,6,7}}
  %d = bf16[64]{0} all-gather-done(%s)
  %r = f32[16]{0} reduce-scatter(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %a = (f32[10]{0}, f32[6]{0}) all-reduce(%p, %p), replica_groups={{0,4},{1,5},{2,6},{3,7}}
}
"""

STARTED = """HloModule m
ENTRY %main (p: f32[4]) -> f32[4] {
  %r = (f32[10], f32[6]) all-reduce-start(%p), replica_groups={{0,1}}
  %n = ((f32[10], f32[6]), (f32[10], f32[6])) all-reduce-start(%p), replica_groups={{0,1}}
  %s = ((f32[8], f32[4]), (f32[4], f32[2])) reduce-scatter-start(%p), replica_groups={{0,1}}
  %t = (f32[4], f32[2]) reduce-scatter(%p), replica_groups={{0,1}}
  %g = ((f32[4], f32[2]), (f32[8], f32[4])) all-gather-start(%p), replica_groups={{0,1}}
  %h = (f32[8], f32[4]) all-gather(%p), replica_groups={{0,1}}
}
"""

TPU = """HloModule m
%part.1 (p: f32[4]) -> f32[8] {
  ROOT %g = f32[8]{0:T(128)} all-gather(%p), channel_id=7, replica_groups={{0,1}}
}
%part.2 (p: f32[4]) -> f32[8] {
  ROOT %h = f32[8]{0:T(128)} all-gather(%p), channel_id=7, replica_groups={{0,1}}
}
%all-reduce-scatter.3 (p: f32[8]) -> f32[4] {
  %r = f32[8]{0:T(128)} all-reduce(%p), channel_id=8, replica_groups={{0,1}}, to_apply=%add
  ROOT %d = f32[4]{0:T(128)} dynamic-slice(%r, %i), dynamic_slice_sizes={4}
}
%below (p: (s32[], f32[4])) -> pred[] {
  %n.1 = s32[]{:T(128)} constant(30), metadata={op_name="cond/lt"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n.1), direction=LT
}
%layer (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %a = f32[8]{0:T(128)} fusion(%p), kind=kCustom, calls=%part.1
  %b = f32[8]{0:T(128)} fusion(%p), kind=kCustom, calls=%part.2
  %c = f32[4]{0:T(128)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%p), condition=%below, body=%layer
}
"""

DECODING = """HloModule m
%busy (p: (s32[], f32[4])) -> pred[] {
  ROOT %any = pred[] and(%p, %p)
}
%inner (p: f32[4]) -> f32[4] {
  %x = f32[2]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}
%layer (p: f32[4]) -> f32[4] {
  %r = f32[2]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}
%turn (p: f32[4]) -> f32[4] {
  %l = f32[4]{0} while(%p), body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  %i = f32[4]{0} while(%p), condition=%busy, body=%inner
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%p), condition=%busy, body=%turn
}
"""


def test_bytes_are_those_of_a_ring_and_loops_count_their_iterations() -> None:
    found = hlo.collectives(TEXT, per_node=4)
    assert found == [
        # 4 of 8 devices, every second one, on two nodes: 64·32·4 bytes · 3/4, three times
        hlo.Collective("all-gather", 2, 2, 3, 3 * 6144),
        hlo.Collective("all-gather", 4, 2, 1, 112),  # 128 bytes · 7/8
        hlo.Collective("all-reduce", 1, 2, 1, 64),  # 2 · 64 bytes · 1/2
        hlo.Collective("reduce-scatter", 2, 1, 1, 64),  # each keeps 64 bytes of 128
    ]


def test_a_loop_of_unknown_length_has_the_iterations_that_are_given() -> None:
    assert hlo.collectives(DECODING, 2, iterations=5) == [
        hlo.Collective("all-reduce", 2, 1, 5 * (3 + 1), 5 * (3 + 1) * 8)
    ]
    assert hlo.collectives(DECODING, 2) == [hlo.Collective("all-reduce", 2, 1, 4, 4 * 8)]


def test_a_loops_condition_runs_once_more_than_its_body() -> None:
    check = "%r = f32[2]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add\n  ROOT %any"
    checked = DECODING.replace("ROOT %any", check)
    # The outer check six times; the inner one in each of five turns, twice.
    times = 5 * (3 + 1) + 6 + 5 * 2
    assert hlo.collectives(checked, 2, iterations=5) == [
        hlo.Collective("all-reduce", 2, 1, times, times * 8)
    ]


def test_numbers_of_eight_and_of_four_bits_count() -> None:
    shapes = "(f8e4m3fn[128,64]{1,0}, f8e5m2[16,8], s4[10,3], f32[])"
    assert hlo.array_bytes(shapes) == [8192, 128, 15, 4]


def test_what_a_tpus_compiler_writes() -> None:
    """The length of a loop is in its condition, a gather has parts, a scatter is a reduction."""
    assert hlo.collectives(TPU, per_node=2) == [
        hlo.Collective("all-gather", 2, 1, 30, 30 * 16),  # 32 bytes · 1/2
        hlo.Collective("reduce-scatter", 2, 1, 30, 30 * 16),  # each keeps 16 bytes of 32
    ]


def test_sums_over_manual_axes_share_a_channel_and_all_count() -> None:
    line = "%{} = f32[{}]{{0}} all-reduce(%p), channel_id=1, replica_groups=mesh['replica'=2] "
    lines = "\n".join(
        line.format(name, size) + "{'replica'}" for name, size in (("a", 8), ("b", 4))
    )
    text = f"HloModule m\nENTRY %main (p: f32[4]) -> f32[4] {{\n{lines}\n}}\n"
    assert hlo.collectives(text, 1) == [hlo.Collective("all-reduce", 1, 2, 2, 48)]


def test_a_started_transfer_counts_once() -> None:
    assert hlo.collectives(STARTED, per_node=2) == [
        hlo.Collective("all-gather", 2, 1, 2, 2 * 24),  # 48 bytes · 1/2
        hlo.Collective("all-reduce", 2, 1, 2, 2 * 64),
        hlo.Collective("reduce-scatter", 2, 1, 2, 2 * 24),
    ]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_in_every_notation(text: str, groups: list[list[int]]) -> None:
    assert hlo._groups(text) == groups


def test_a_gathered_weight_is_sent_as_often_as_there_are_layers() -> None:
    mesh = make_mesh(1, 4, 2)

    def layers(x: jax.Array, kernels: jax.Array) -> jax.Array:
        def one(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            kernel = sharding.gather(kernel, "embed", "mlp")
            y = jnp.einsum("nd,df->nf", x, kernel, out_sharding=P(("replica", "fsdp"), "tensor"))
            return sharding.reshard(y, "batch", None), None

        return jax.lax.scan(one, x, kernels)[0]

    def abstract(shape: tuple[int, ...], *axes: str | None) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, sharding.mesh_spec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

    with jax.set_mesh(mesh):
        x, kernels = abstract((8, 64), "batch", None), abstract((5, 64, 64), None, "embed", "mlp")
        text = jax.jit(layers).lower(x, kernels).compile().as_text()
    weights, activations = (64 * 32 * 4) * 3 // 4, (2 * 64 * 4) // 2
    assert hlo.collectives(text, per_node=8) == [
        hlo.Collective("all-gather", 2, 1, 5, 5 * activations),
        hlo.Collective("all-gather", 4, 1, 5, 5 * weights),
    ]
