"""Small networks, texts and programs for the tests of core/, and steps that several tests read."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.core import packing, steps
from gad_jax.core.optimizer import adamw
from gad_jax.core.program import Program
from gad_jax.distributed import devices, sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig, alike
from gad_jax.settings.optimizer import Optimizer
from gad_jax.types import PackedRows, Params, TrainState

PROMPTS, SAMPLES, VOCABULARY = 8, 3, 64
UNUSED = VOCABULARY - 1
"""A token that stands nowhere in the data."""

GENERATOR = DecoderConfig(
    family="qwen2",
    vocabulary=VOCABULARY,
    width=16,
    mlp_width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=4,
    kinds=alike(10_000.0),
    norm_epsilon=1e-6,
    max_positions=64,
    qkv_bias=True,
    remat="none",
)
DISCRIMINATOR = dataclasses.replace(GENERATOR, head="score")


def _record() -> optax.GradientTransformationExtraArgs:
    """Passes a gradient on unchanged and keeps it in its state, for a test to read."""

    def update(
        gradient: Params, kept: Params, params: Any = None, *, finite: jax.Array, **_: Any
    ) -> tuple[Params, Params]:
        return gradient, jax.tree.map(lambda a, b: jnp.where(finite, a, b), gradient, kept)

    return optax.GradientTransformationExtraArgs(
        lambda params: jax.tree.map(jnp.zeros_like, params), update
    )


# With this epsilon an update is a smooth function of the gradient: with 1e-8 it is nearly its sign,
# and where the gradient is rounding alone, so would be the sign.
SETTINGS = Optimizer(max_gradient_norm=0.2, weight_decay=1e-4, epsilon=1e-2)
OPTIMIZER = optax.chain(_record(), adamw(SETTINGS, 1e-2))

GAD = Program(
    generator=GENERATOR,
    discriminator=DISCRIMINATOR,
    generator_optimizer=OPTIMIZER,
    discriminator_optimizer=OPTIMIZER,
    discriminator_objective="bradley_terry",
    vocabulary_chunk=16,
    temperature=0.8,
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=3.0,
    kl_coefficient=0.1,
    kl_max=10.0,
    log_ratio_max=20.0,
    entropy_coefficient=0.0,
    advantage_epsilon=1e-6,
)

FROZEN = dataclasses.replace(
    GAD,
    kl_coefficient=0.0,
    entropy_coefficient=0.1,
    discriminator_objective="cross_entropy",
    train_discriminator=False,
)

# As real runs do, this one recomputes activations in the backward pass.
MESH_GAD = dataclasses.replace(
    GAD,
    generator=dataclasses.replace(GENERATOR, remat="full"),
    discriminator=dataclasses.replace(DISCRIMINATOR, remat="full"),
)


class Texts(NamedTuple):
    """Token ids; the first response of a prompt is the teacher's."""

    prompts: list[np.ndarray]
    responses: list[list[np.ndarray]]
    logprobs: list[list[np.ndarray]]


def texts(seed: int = 0) -> Texts:
    """Returns random token ids; lengths are those of seed 0, so that every batch has one shape."""
    lengths, ids = np.random.default_rng(0), np.random.default_rng(seed)

    def words(low: int, high: int) -> np.ndarray:
        return ids.integers(1, UNUSED, lengths.integers(low, high)).astype(np.int32)

    prompts = [words(1, 7) for _ in range(PROMPTS)]
    responses = [[words(1, 8) for _ in range(SAMPLES + 1)] for _ in range(PROMPTS)]
    logprobs = [[-ids.random(len(r)).astype(np.float32) for r in group] for group in responses]
    return Texts(prompts, responses, logprobs)


def rows(
    texts: Texts, which: str = "pairs", micro_batches: int = 1, mesh: Mesh | None = None
) -> PackedRows:
    """Returns packed rows, the same on one device as for the four data shards of the mesh."""
    of = {"pairs": slice(None), "samples": slice(1, None), "teacher": slice(0, 1)}[which]
    packed = packing.pack(
        texts.prompts,
        [group[of] for group in texts.responses],
        [group[of] for group in texts.logprobs] if which == "samples" else None,
        row_tokens=32,
        micro_batches=micro_batches,
        shards=4,
    )
    return jax.tree.map(jnp.array, packed) if mesh is None else packing.place(packed, mesh)


def first(packed: PackedRows) -> PackedRows:
    return jax.tree.map(lambda x: x[0], packed)


@functools.cache
def networks() -> tuple[Params, Params, Params]:
    """Returns generator, reference and discriminator on the host.

    Kernels are ten times as large as at the start of a real run: attention and scores should vary.
    """

    def one(config: DecoderConfig, seed: int) -> Params:
        params = decoder.init(config, jax.random.key(seed))
        return jax.tree_util.tree_map_with_path(
            lambda path, x: np.asarray(x) * (1 if "norm" in sharding.path_name(path) else 10),
            params,
        )

    return one(GENERATOR, 0), one(GENERATOR, 1), one(DISCRIMINATOR, 2)


def put(params: Params, mesh: Mesh | None = None) -> Params:
    """Copies a network to the devices; a step takes its buffers."""
    if mesh is None:
        return jax.tree.map(jnp.array, params)
    specs = sharding.parameter_specs(params)
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), params, specs)


def start(program: Program = GAD, mesh: Mesh | None = None, reference: str = "other") -> TrainState:
    """Returns the state at the start of a stage, made as `state.begin_stage` makes it."""
    generator, other, discriminator = networks()
    begin = jax.jit(OPTIMIZER.init)
    g, d = put(generator, mesh), put(discriminator, mesh)
    nothing = (np.int32(0), np.zeros(2, np.int32))
    key = jax.random.key(0)
    if mesh is None:
        step, skips = (jnp.array(x) for x in nothing)
    else:
        step, skips = (devices.put(x, mesh) for x in nothing)
        key = jax.device_put(key, NamedSharding(mesh, P()))
    return TrainState(
        step=step,
        key=key,
        generator=g,
        generator_optimizer=begin(g),
        discriminator=d,
        discriminator_optimizer=begin(d) if program.train_discriminator else None,
        reference=(
            put(other if reference == "other" else generator, mesh)
            if program.kl_coefficient > 0
            else None
        ),
        skips=skips,
    )


class Outcome(NamedTuple):
    state: TrainState
    metrics: dict[str, np.ndarray]


def host(outcome: Any) -> Outcome:
    state, metrics = outcome
    state = state._replace(key=jax.random.key_data(state.key))
    return Outcome(*jax.device_get((state, metrics)))


@functools.cache
def stepped(kind: str, program: Program = GAD, micro_batches: int = 1) -> Outcome:
    """Returns what one step from the start gives, on the host."""
    step, needed = {
        "gad": (steps.gad_step, ("pairs", "samples")),
        "warmup": (steps.warmup_step, ("pairs", "teacher")),
        "discriminator": (steps.discriminator_step, ("pairs",)),
        "seqkd": (steps.seqkd_step, ("teacher",)),
    }[kind]
    batch = (rows(texts(), which, micro_batches) for which in needed)
    return host(step(program, start(program), *batch))


def gradients(outcome: Outcome) -> tuple[Params, Params]:
    """Returns the gradients of generator and discriminator that a step computed."""
    state = outcome.state
    return state.generator_optimizer[0], state.discriminator_optimizer[0]


def close(found: Any, wanted: Any, tolerance: float = 1e-6) -> None:
    """Compares trees leaf by leaf, relative to the largest entry of each wanted leaf.

    Float32: the same sums in another order differ by some units of 6e-8.
    """

    def one(path: Any, a: Any, b: Any) -> None:
        b = np.asarray(b, np.float32)
        name = sharding.path_name(path)
        # The bias's gradient is nought, a sum of terms up to 1/24 that cancel.
        scale = max(np.max(np.abs(b)), 1e-2 if name == "score/bias" else 1e-3)
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance * scale, err_msg=name)

    jax.tree_util.tree_map_with_path(one, found, wanted)


def identical(found: Any, wanted: Any) -> None:
    """Compares trees bit by bit; NaN equals NaN."""
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def moved(before: Any, after: Any) -> bool:
    return any(
        (a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


# Steps in a row


class History(NamedTuple):
    outcomes: list[Outcome]
    compiled: list[int]
    """Programs that each step compiled."""


def walk(program: Program, mesh: Mesh | None, micro_batches: int = 1) -> History:
    counter = devices.CompileCounter()
    state, outcomes, compiled = start(reference="same", mesh=mesh), [], []
    for seed in range(3):
        batch = [rows(texts(seed), which, micro_batches, mesh) for which in ("pairs", "samples")]
        before = counter.count
        state, metrics = steps.gad_step(program, state, *batch)
        compiled.append(counter.count - before)
        copy = jax.tree.map(jnp.copy, state._replace(key=None)), metrics
        outcomes.append(Outcome(*devices.fetch(copy)))
    return History(outcomes, compiled)


@functools.cache
def history() -> History:
    return walk(GAD, None)


@functools.cache
def mesh_history(shape: tuple[int, int, int], micro_batches: int) -> History:
    mesh = make_mesh(*shape, jax.devices()[: math.prod(shape)])
    with jax.set_mesh(mesh):
        return walk(MESH_GAD, mesh, micro_batches)
