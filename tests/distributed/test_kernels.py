"""The counts of a small program: a loop of unknown length around a fixed one, an update in place
and another loop of unknown length. XLA compiled it for an H100 (jaxlib 0.11.2)."""

from pathlib import Path

import pytest

from gad_jax.distributed import kernels

GOLDEN = Path(__file__).parents[1] / "golden/kernels"
FLOAT, WIDTH = 4, 64


def counted(thunks=None, steps=1):
    texts = (GOLDEN / name for name in ("metadata.txt", "program.hlo.txt"))
    thunks = thunks or (GOLDEN / "thunks.txt").read_text()
    return kernels.launches(thunks, *(text.read_text() for text in texts), steps)


def test_one_iteration_of_the_loop_is_counted():
    found = counted()
    by_name = {kernel.name: kernel for kernel in found.kernels}
    matmul = by_name["gemm_fusion_dot_general.0"]
    # 64 × 64 weights, 8 × 64 inputs and as many outputs, three times.
    assert (matmul.times, matmul.bytes) == (3, 3 * FLOAT * (WIDTH * WIDTH + 2 * 8 * WIDTH))
    # Of the cache of 32 rows, one is written; it is read from the inputs, with its place.
    update = by_name["loop_dynamic_update_slice_fusion"]
    assert (update.times, update.bytes) == (1, 2 * FLOAT * WIDTH + FLOAT)
    # Both loops' conditions, the fixed loop's matmul, counter and copy, a copy, update and counter.
    assert found.total == 2 + 3 * 3 + 1 + 1 + 1 + 1
    assert found.waits == 2
    assert found.bytes == sum(kernel.bytes for kernel in found.kernels)
    assert found.largest(1)[0].source == "eval_jaxpr/dot_general"


def test_a_step_is_a_part_of_an_iteration():
    whole, step = counted(), counted(steps=2)
    assert (step.waits, step.bytes) == (1, whole.bytes // 2)
    assert [each.times for each in step.kernels] == [each.times / 2 for each in whole.kernels]
    assert step.in_graphs == whole.in_graphs == 0
    # Of the matmul in every layer, half is started in a step.
    assert (whole.per_layer(layers=3), step.per_layer(layers=3)) == (3, 0)


def test_the_main_loop_may_be_inside_of_another_one():
    """The first loop of unknown length, again as all that an outer one holds but for a refill."""
    lines = (GOLDEN / "thunks.txt").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if " 003: " in line or "003: kWhile" in line)
    condition, refill = (
        ["condition:", "    004: kCustomKernel [source | sink] input_reduce_fusion"],
        next(n for n, line in enumerate(lines) if " 013: " in line),
    )
    inside = ["    " + line if line[0] in " 0" else line for line in lines[first:]]
    other = lines[refill : refill + 5]
    outer = [*lines[:first], lines[first], *condition, "  body:", *other, *inside]
    found = counted("\n".join(outer))
    # Of the inner loop and its refill, as without the outer one.
    assert (found.waits, found.total) == (2, counted().total)


def test_kernels_of_a_layer_occur_as_often_as_there_are_layers():
    assert counted().per_layer(layers=3) == 3  # matmul, its copy, a counter
    assert counted().per_layer(layers=4) == 2  # the counters, the copies


def test_a_graph_holds_what_is_inside_of_it():
    lines = (GOLDEN / "thunks.txt").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if " 006: " in line)
    last = next(n for n, line in enumerate(lines) if " 013: " in line)
    graph = "    000: kCommandBuffer [source | sink] "
    # All of the fixed loop and the update in one graph.
    moved = [graph, *("    " + line if line[0] == " " else line for line in lines[first:last])]
    found = counted("\n".join([*lines[:first], *moved, *lines[last:]]))
    assert (found.graphs, found.waits) == (1, 2)
    assert found.total == counted().total
    assert found.in_graphs == pytest.approx((9 + 2) / 15)


def test_the_lists_are_found_with_and_without_graphs(tmp_path):
    (tmp_path / "module_0001.jit_f.thunk_metadata.txt").write_text("names")
    (tmp_path / "module_0001.jit_f.thunk_sequence.txt").write_text("before")
    assert kernels.dumped(tmp_path) == ("before", "names")
    (tmp_path / "module_0001.jit_f.thunk_sequence_after_thunk_passes.txt").write_text("after")
    assert kernels.dumped(tmp_path) == ("after", "names")


def fused(*lines):
    """Returns the instructions of a fusion that takes 4 of 1000 rows of its first operand."""
    start = "%table = bf16[1000,64]{1,0} parameter(0)", "%rows = s32[4,1]{1,0} parameter(1)"
    return kernels._parse([f"  {line}" for line in (*start, *lines)])


def test_a_gather_reads_what_it_takes_also_behind_a_conversion():
    wide = "%wide = f32[1000,64]{1,0} convert(%table)"
    gather = "ROOT %taken = f32[4,64]{1,0} gather(%wide, %rows), offset_dims={1}"
    assert kernels._read(fused(wide, gather), "table", 128_000) == 4 * 64 * FLOAT
    whole = "ROOT %wide = f32[1000,64]{1,0} convert(%table)"
    assert kernels._read(fused(whole), "table", 128_000) == 128_000
    both = "ROOT %both = (f32[4,64]{1,0}, f32[1000,64]{1,0}) tuple(%taken, %wide)"
    found = fused(wide, gather.replace("ROOT ", ""), both)
    assert kernels._read(found, "table", 128_000) == 128_000


def test_a_copy_that_starts_beside_others_moves_its_slice():
    """XLA names another instruction in the list than the text has, which has the one around it."""
    text = """HloModule beside

%sliced (stack: bf16[24,64,64], place: s32[]) -> bf16[1,64,64] {
  %stack = bf16[24,64,64]{2,1,0} parameter(0)
  %place = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%stack, %place, %zero, %zero)
}

ENTRY %main (stack: bf16[24,64,64], place: s32[]) -> bf16[1,64,64] {
  %stack.1 = bf16[24,64,64]{2,1,0} parameter(0)
  %place.1 = s32[] parameter(1)
  %fusion-start = ((bf16[24,64,64], s32[]), bf16[1,64,64], u32[]) fusion-start(%stack.1, %place.1), kind=kLoop, calls=%sliced
  ROOT %fusion-done = bf16[1,64,64]{2,1,0} fusion-done(%fusion-start)
}
"""  # noqa: E501
    thunks = """000: kAsyncStart [source]
    001: kDynamicSliceFusion [source]
        002: kCopy [source]
003: kAsyncDone [sink]
"""
    names = "fusion-start", "dynamic_slice_fusion"
    metadata = "\n".join(
        f'profile_annotation: "{name}" thunk_id: {number}' for number, name in enumerate(names)
    )
    [copy] = kernels.launches(thunks, metadata, text).kernels
    half = 2
    # The slice is read and written; its place is read.
    assert (copy.name, copy.bytes) == ("fusion-start", 2 * half * 64 * 64 + FLOAT)
