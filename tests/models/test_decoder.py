"""The decoder computes what transformers does, packed or not, recomputed or not."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params, Segments
from tests.models.record_reference import FILE, LENGTH, NAMES, VARIANTS, summary, tokens
from tests.models.variants import PARITY, Rows, logits, rows

# The same sums over blocks of other lengths.
SAME = 1e-5

REMAT = ("full", "dots", "none")

scores = jax.jit(decoder.score, static_argnums=0)


def as_score(config: DecoderConfig, params: Params, **changes: Any) -> tuple[DecoderConfig, Params]:
    """Returns the network with a score head in the place of its vocabulary."""
    params = {name: part for name, part in params.items() if name != "head"}
    params["score"] = decoder.init_score(config, jax.random.key(1), 0.3)
    params["score"]["bias"] = jnp.asarray([0.25])
    return dataclasses.replace(config, head="score", **changes), params


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_that_transformers_computed(models: Any, name: str) -> None:
    _, config, params = models(name)
    with np.load(FILE) as recorded:
        expected = recorded[name]
    ours = summary(logits(config, params, *rows(tokens()))[0])
    assert expected.shape == (LENGTH, 1 + 512 // 16)
    np.testing.assert_allclose(ours, expected, atol=PARITY, rtol=0)


def test_the_reference_tells_the_variants_apart() -> None:
    with np.load(FILE) as recorded:
        table = {name: recorded[name] for name in VARIANTS}
    names = list(table)
    for index, name in enumerate(names):
        for other in names[:index]:
            assert np.abs(table[name] - table[other]).max() > 1000 * PARITY, (name, other)


def test_only_the_distance_between_positions_counts(models: Any) -> None:
    for name in ("llama", "llama3-rope", "qwen3"):
        _, config, params = models(name)
        at_zero = logits(config, params, *rows(tokens()))
        shifted = logits(config, params, *rows(tokens(), shift=100))
        # the angle of position 148, in float32, is off by up to 148 · 6e-8 radians
        np.testing.assert_allclose(shifted, at_zero, atol=PARITY)
        stretched = logits(config, params, *rows(tokens(), stretch=2))
        assert np.abs(stretched - at_zero).max() > 1000 * PARITY


def packed_row() -> tuple[Rows, list[np.ndarray], list[np.ndarray]]:
    """Returns a row of two groups and padding, its sequences, and each one's places in the row.

    Prompt of 5, responses of 3 and 4; prompt of 2, responses of 6 and 1; padded to 24.
    """
    ids = tokens(1, 24)
    own, prefix, positions = (np.zeros_like(ids) for _ in range(3))
    sequences, places = [], []
    start, segment = 0, 1
    for prompt, responses in ((5, (3, 4)), (2, (6, 1))):
        shared = np.arange(start, start + prompt)
        own[0, shared] = prefix[0, shared] = first = segment
        positions[0, shared] = np.arange(prompt)
        start += prompt
        for response in responses:
            segment += 1
            here = np.arange(start, start + response)
            own[0, here], prefix[0, here] = segment, first
            positions[0, here] = prompt + np.arange(response)
            places.append(np.concatenate([shared, here]))
            sequences.append(ids[:, places[-1]])
            start += response
        segment += 1
    row = jax.tree.map(jnp.asarray, (ids, positions, Segments(own, prefix)))
    return row, sequences, places


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_packed_row_equals_its_sequences_apart(models: Any, name: str) -> None:
    _, config, params = models(name)
    (ids, positions, segments), sequences, places = packed_row()
    # one batch, so that one program serves all: the packed row, and each sequence in its own
    padded, own = (np.zeros((1 + len(sequences), 24), np.int32) for _ in range(2))
    padded[0], own[0] = ids[0], segments.own[0]
    for index, sequence in enumerate(sequences, 1):
        padded[index, : sequence.size] = sequence
        own[index, : sequence.size] = 1
    apart = np.broadcast_to(np.arange(24), padded.shape)
    batch = (
        jnp.asarray(padded),
        jnp.asarray(apart).at[0].set(positions[0]),
        Segments(jnp.asarray(own), jnp.asarray(own).at[0].set(segments.prefix[0])),
    )
    logits_of, scores_of = logits(config, params, *batch), scores(*as_score(config, params), *batch)
    for index, here in enumerate(places, 1):
        for of in (logits_of, scores_of):
            np.testing.assert_allclose(of[0][here], of[index][: here.size], atol=SAME)


def test_padding_and_later_tokens_change_nothing(models: Any) -> None:
    _, config, params = models("llama")
    (ids, positions, segments), _, places = packed_row()
    before = logits(config, params, ids, positions, segments)[0]
    changed = np.array(ids)
    changed[0, 21:] = 7  # padding
    changed[0, 5:8] = 9  # the first response
    after = logits(config, params, changed, positions, segments)[0]
    kept = np.setdiff1d(np.concatenate(places), np.arange(5, 8))
    # the same program on the same numbers
    np.testing.assert_array_equal(after[kept], before[kept])
    assert np.abs(after[5:8] - before[5:8]).max() > 0.01


def test_remat_changes_memory_and_not_the_result(models: Any) -> None:
    _, config, params = models("qwen3")
    row, _, _ = packed_row()
    real = np.asarray(row[2].own > 0, np.float32)

    def loss(params: Params, config: DecoderConfig) -> jax.Array:
        logprobs = jax.nn.log_softmax(decoder.logits(config, params, *row))
        return -jnp.sum(logprobs[..., 3] * real)

    results = []
    for policy, unroll in (*((policy, False) for policy in REMAT), ("dots", True)):
        network = dataclasses.replace(config, remat=policy, unroll=unroll)
        value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        results.append(value_and_grad(params, network))
    value, gradient = results[0]
    # Sums over 21 tokens of order 1; a recomputed layer may be fused otherwise.
    for other_value, other in results[1:]:
        np.testing.assert_allclose(other_value, value, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other, gradient)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def equations(jaxpr: Any) -> list[Any]:
    """Returns the equations of a program and, after each, those inside of it."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jaxprs_in_params(equation.params):
            found += equations(inner)
    return found


def is_scan(equation: Any) -> bool:
    return equation.primitive.name == "scan"


def is_attention(equation: Any) -> bool:
    """Returns whether it is a product for each row and head."""
    dimensions = equation.params.get("dimension_numbers")
    return equation.primitive.name == "dot_general" and len(dimensions[1][0]) == 2


def test_unrolled_layers_are_no_loop_and_still_recompute(models: Any) -> None:
    _, config, params = models("llama")
    row = rows(tokens())

    def compiled(remat: str, unroll: bool) -> tuple[list[int], int]:
        """Returns how many layers each loop takes at once, and the bytes of the program."""
        network: Any = dataclasses.replace(config, remat=remat, unroll=unroll)

        def total(params: Params) -> jax.Array:
            return jnp.sum(decoder.logits(network, params, *row))

        gradient = jax.grad(total)
        scans = [e for e in equations(jax.make_jaxpr(gradient)(params).jaxpr) if is_scan(e)]
        memory = jax.jit(gradient).lower(params).compile().memory_analysis()
        return [scan.params["unroll"] for scan in scans], memory.temp_size_in_bytes

    assert compiled("full", False)[0] == [1, 1]
    (at_once, recomputed), (_, kept) = compiled("full", True), compiled("none", True)
    assert at_once == [2, 2]
    assert recomputed < kept  # so XLA merges no second computation with the first


def test_layers_are_one_scan_and_remat_says_what_it_keeps(models: Any) -> None:
    _, config, params = models("llama")
    row = rows(tokens())
    kept, products = {}, {}
    for policy in REMAT:
        network = dataclasses.replace(config, remat=policy)

        def total(params: Params, network: DecoderConfig = network) -> jax.Array:
            return jnp.sum(decoder.logits(network, params, *row))

        forward = [e for e in equations(jax.make_jaxpr(total)(params).jaxpr) if is_scan(e)]
        assert [scan.params["length"] for scan in forward] == [2]
        program = jax.make_jaxpr(jax.grad(total))(params)
        scans = [e for e in equations(program.jaxpr) if is_scan(e)]
        assert [scan.params["reverse"] for scan in scans] == [False, True]
        arrays = [variable.aval for variable in scans[0].outvars]
        stacked = [array for array in arrays if array.shape[:1] == (2,)]
        kept[policy] = sum(array.size for array in stacked) / (2 * LENGTH)
        pairs = [e for e in equations(scans[1].params["jaxpr"]) if is_attention(e)]
        products[policy] = len(pairs) // 4  # blocks of queries
    # Of each layer and token: its input; with "dots" also q, k, v, o, gate and up, and attention's
    # output and a number per head. The backward pass does not read the output of down.
    assert kept["full"] == 32
    assert kept["dots"] == 32 + (32 + 16 + 16 + 32 + 64 + 64) + (32 + config.heads)
    # The weights again and four gradients; with "full" also weights and output as before.
    assert products == {"full": 7, "dots": 5, "none": 5}
    assert kept["none"] > 2 * kept["dots"]


def test_the_score_head_works_in_float32(models: Any) -> None:
    _, config, params = models("llama")
    row = rows(tokens())
    half, judge = as_score(config, params, compute_dtype="bfloat16")
    given = scores(half, judge, *row)
    assert given.dtype == jnp.float32
    hidden, _ = jax.jit(decoder.hidden, static_argnums=0)(half, judge, *row)
    assert hidden.dtype == jnp.bfloat16
    kernel = np.asarray(judge["score"]["kernel"], np.float64)[:, 0]
    expected = np.asarray(hidden, np.float64) @ kernel + 0.25
    # float32 sums of 32 products
    np.testing.assert_allclose(given, expected, atol=2e-6)
    rounded = np.asarray(given.astype(jnp.bfloat16), np.float64)
    assert np.abs(rounded - expected).max() > 1e-3


def test_half_precision_stays_near_float32(models: Any) -> None:
    _, config, params = models("qwen2")
    row = rows(tokens())
    half = logits(dataclasses.replace(config, compute_dtype="bfloat16"), params, *row)
    assert half.dtype == jnp.float32
    # bfloat16 keeps 8 bits: 0.4 % of logits of up to 2, a few times over through the layers
    np.testing.assert_allclose(half, logits(config, params, *row), atol=0.1)


def test_the_cache_holds_rotated_keys_per_layer(models: Any) -> None:
    _, config, params = models("qwen3")
    hidden = jax.jit(decoder.hidden, static_argnums=(0, 5))
    _, (keys, values) = hidden(config, params, *rows(tokens(2, 8)), True)
    assert keys.shape == values.shape == (2, 2, 2, 8, 8)  # L M K T C
    _, (moved, unmoved) = hidden(config, params, *rows(tokens(2, 8), shift=3), True)
    assert np.abs(moved[0] - keys[0]).max() > 0.1
    np.testing.assert_array_equal(unmoved[0], values[0])
    assert hidden(config, params, *rows(tokens(2, 8)), False)[1] is None


def test_init_has_the_tree_that_load_has(models: Any) -> None:
    for name in VARIANTS:
        _, config, params = models(name)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), decoder.abstract(config))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == shapes


def test_shapes_are_of_the_mesh_and_each_caller_has_its_own(models: Any) -> None:
    _, config, _ = models("llama")
    alone = decoder.abstract(config)
    expected = decoder.abstract(config)
    del alone["layers"]["query"], alone["embedding"]
    assert decoder.abstract(config) == expected
    with jax.set_mesh(mesh := make_mesh()):
        inside = decoder.abstract(config)
    assert inside["embedding"].sharding.mesh == mesh.abstract_mesh
    assert expected["embedding"].sharding is None
    assert decoder.abstract(config) == expected


def test_a_fresh_score_head_is_normal_without_bias(models: Any) -> None:
    _, config, _ = models("llama")
    wide = dataclasses.replace(config, width=4096)
    head = decoder.init_score(wide, jax.random.key(0), 0.02)
    assert head["kernel"].shape == (4096, 1)
    assert head["bias"].tolist() == [0.0]
    # 4096 draws: the standard deviation is known to 1.1 %, so 5 % is beyond four of its errors
    np.testing.assert_allclose(np.std(head["kernel"]), 0.02, rtol=0.05)


def test_rounded_kernels_compute_the_same(models: Any) -> None:
    """Every pass rounds them anyway; norms, biases and embeddings stay."""
    _, config, params = models("llama")
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    rounded = decoder.rounded(half, params)
    row = rows(tokens())
    np.testing.assert_array_equal(logits(half, rounded, *row), logits(half, params, *row))
    dtypes = jax.tree_util.tree_map_with_path(lambda p, x: (p[-1].key, x.dtype.name), rounded)
    found = {*jax.tree.leaves(dtypes["layers"], is_leaf=lambda x: isinstance(x, tuple))}
    assert found == {("kernel", "bfloat16"), ("scale", "float32")}
    assert rounded["embedding"] is params["embedding"]
    assert decoder.rounded(config, params)["layers"]["up"]["kernel"].dtype == jnp.float32
