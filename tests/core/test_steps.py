"""The compiled steps against losses written out by hand, and what must leave them unchanged."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gad_jax.core import forward, packing, steps
from gad_jax.core.optimizer import adamw
from gad_jax.core.program import Program
from gad_jax.distributed import devices, mesh, sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import decoder
from gad_jax.models.config import DecoderConfig
from gad_jax.settings import sections
from gad_jax.types import PackedRows, Params, Segments, TrainState

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
    rope_theta=10_000.0,
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
SETTINGS = sections.Optimizer(max_gradient_norm=0.2, weight_decay=1e-4, epsilon=1e-2)
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


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles() -> Iterator[None]:
    """The programs run for milliseconds here: a third of the compile time is enough for them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# The data


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


class Alone(NamedTuple):
    """Every response in a row of its own after its prompt, padded to the longest: no packing."""

    tokens: jax.Array
    positions: jax.Array
    segments: Segments
    targets: jax.Array
    mask: jax.Array
    last: jax.Array


def alone(texts: Texts, which: str) -> Alone:
    """Returns the rows [B·N, T]; "teacher" holds the teacher's response once for each sample."""
    pairs = [
        (prompt, group[0] if which == "teacher" else response)
        for prompt, group in zip(texts.prompts, texts.responses, strict=True)
        for response in group[1:]
    ]
    length = max(
        len(p) + len(r)
        for p, group in zip(texts.prompts, texts.responses, strict=True)
        for r in group
    )
    tokens, own, targets = (np.zeros((len(pairs), length), np.int32) for _ in range(3))
    mask = np.zeros((len(pairs), length), bool)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        tokens[row, :end], own[row, :end] = [*prompt, *response], 1
        targets[row, len(prompt) - 1 : end - 1] = response
        mask[row, len(prompt) - 1 : end - 1] = True
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    last = np.asarray([len(p) + len(r) - 1 for p, r in pairs])
    return jax.tree.map(
        jnp.array, Alone(tokens, positions, Segments(own, own), targets, mask, last)
    )


# The networks


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


# The losses by hand: one response per row, whole logits


@jax.jit
def logprobs_by_hand(
    params: Params, x: Alone, temperature: float = 0.8
) -> tuple[jax.Array, jax.Array]:
    """Returns log-probs of the targets and entropies, [B·N T]."""
    logits = decoder.logits(GENERATOR, params, x.tokens, x.positions, x.segments)
    every = jax.nn.log_softmax(logits / temperature)
    picked = jnp.take_along_axis(every, x.targets[..., None], axis=-1)[..., 0]
    return picked, -jnp.sum(jnp.exp(every) * every, axis=-1)


@jax.jit
def scores_by_hand(params: Params, x: Alone) -> jax.Array:
    """Returns the score at the last token of every row."""
    scores = decoder.score(DISCRIMINATOR, params, x.tokens, x.positions, x.segments)
    return jnp.take_along_axis(scores, x.last[:, None], axis=1)[:, 0]


@jax.jit
def reinforce_by_hand(
    params: Params, reference: Params, x: Alone, advantages: jax.Array, kl: float, bonus: float
) -> Params:
    """Returns the gradient of REINFORCE's token-mean loss, with k3 to the reference and an entropy
    bonus."""

    def loss(params: Params) -> jax.Array:
        logprobs, entropy = logprobs_by_hand(params, x)
        other, _ = logprobs_by_hand(reference, x)
        d = other - logprobs
        k3 = jnp.exp(d) - d - 1
        each = -advantages[:, None] * logprobs + kl * jnp.minimum(k3, 10) - bonus * entropy
        return jnp.sum(each * x.mask) / jnp.sum(x.mask)

    return jax.grad(loss)(params)


@functools.cache
def all_scores_by_hand() -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of teacher (repeated) and samples at the start, [B N] each."""
    params = put(networks()[2])
    return tuple(
        np.asarray(scores_by_hand(params, alone(texts(), which)), np.float64).reshape(
            PROMPTS, SAMPLES
        )
        for which in ("teacher", "samples")
    )


def advantages_by_hand() -> np.ndarray:
    _, rewards = all_scores_by_hand()
    deviation = rewards - rewards.mean(axis=1, keepdims=True)
    return (deviation / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)).astype(np.float32)


def generator_by_hand(kl: float = 0.0, bonus: float = 0.0) -> Params:
    generator, other, _ = (put(network) for network in networks())
    advantages = jnp.asarray(advantages_by_hand().ravel())
    return reinforce_by_hand(generator, other, alone(texts(), "samples"), advantages, kl, bonus)


# Packed rows against rows of one response


@functools.cache
def packed_scores() -> Callable[..., Any]:
    return jax.jit(lambda params, x: forward.response_scores(DISCRIMINATOR, params, x))


def test_packed_logprobs_and_entropies_are_those_of_each_response_alone() -> None:
    params = put(networks()[0])
    packed, x = first(rows(texts(), "samples")), alone(texts(), "samples")
    packed_logprobs = jax.jit(lambda *a: forward.response_logprobs(GENERATOR, *a, 0.8, 16))
    found = packed_logprobs(params, packed)
    wanted = logprobs_by_hand(params, x)
    for one, other in zip(found, wanted, strict=True):
        for sequence in range(PROMPTS * SAMPLES):
            mine = packed.mask & (packed.sequences == sequence)
            # Attention sums over other columns, in another order.
            np.testing.assert_allclose(one[mine], other[sequence][x.mask[sequence]], atol=1e-5)


def test_packed_scores_are_those_of_each_response_alone() -> None:
    packed = rows(texts(), "pairs")
    found = np.asarray(packed_scores()(put(networks()[2]), first(packed)))
    teacher, samples = all_scores_by_hand()
    order = np.asarray(packed.groups[0])
    np.testing.assert_allclose(found[:, 1:], samples[order], atol=1e-5)
    np.testing.assert_allclose(found[:, :1] + np.zeros(SAMPLES), teacher[order], atol=1e-5)


def test_identical_ids_get_identical_scores() -> None:
    """The teacher's text, sampled by the student, is no better and no worse for its place."""
    same = texts()
    same = same._replace(responses=[[group[0]] * (SAMPLES + 1) for group in same.responses])
    found = np.asarray(packed_scores()(put(networks()[2]), first(rows(same))))
    np.testing.assert_allclose(found - found[:, :1], np.zeros_like(found), atol=2e-6)


# The gradients


def test_the_generators_gradient_is_reinforce() -> None:
    # The reference is the generator itself: the KL and its gradient are zero.
    found = history().outcomes[0]
    # An advantage divides by a spread of scores: rounding grows by the inverse.
    close(gradients(found)[0], generator_by_hand(), 2e-5)
    # ρ = 1, so the loss is the mean of -A, while REINFORCE's would be that of -A log p.
    lengths = np.asarray([[len(r) for r in group[1:]] for group in texts().responses])
    wanted = -np.sum(advantages_by_hand() * lengths) / lengths.sum()
    np.testing.assert_allclose(found.metrics["generator/policy_loss"], wanted, atol=1e-5)


def test_the_kl_term_and_its_gradient() -> None:
    found = stepped("gad")
    close(gradients(found)[0], generator_by_hand(kl=0.1), 2e-5)
    metrics = found.metrics
    assert 0 < metrics["kl/reference"] < 10
    wanted = metrics["generator/policy_loss"] + 0.1 * metrics["kl/reference"]
    np.testing.assert_allclose(metrics["generator/loss"], wanted, rtol=1e-6)


def test_the_entropy_bonus_and_its_gradient() -> None:
    found = stepped("gad", FROZEN)
    close(found.state.generator_optimizer[0], generator_by_hand(bonus=0.1), 2e-5)
    metrics = found.metrics
    assert metrics["entropy"] > 1
    wanted = metrics["generator/policy_loss"] - 0.1 * metrics["entropy"]
    np.testing.assert_allclose(metrics["generator/loss"], wanted, rtol=1e-6)


def test_scoring_the_teacher_once_gives_the_gradient_of_scoring_it_for_each_sample() -> None:
    teacher, samples = alone(texts(), "teacher"), alone(texts(), "samples")

    @jax.jit
    def naive(params: Params) -> tuple[jax.Array, Params]:
        def loss(params: Params) -> jax.Array:
            margin = scores_by_hand(params, teacher) - scores_by_hand(params, samples)
            return -jnp.mean(jax.nn.log_sigmoid(margin))

        return jax.value_and_grad(loss)(params)

    loss, gradient = naive(put(networks()[2]))
    found = stepped("discriminator")
    close(gradients(found)[1], gradient, 1e-5)
    np.testing.assert_allclose(found.metrics["discriminator/loss"], loss, rtol=1e-5)


def test_discriminator_metrics_are_of_fresh_scores() -> None:
    teacher, samples = all_scores_by_hand()
    for kind in ("gad", "discriminator"):
        metrics = stepped(kind).metrics
        for name, wanted in (
            ("accuracy", (teacher > samples).mean()),
            ("margin", (teacher - samples).mean()),
            ("teacher_score", teacher.mean()),
            ("student_score", samples.mean()),
        ):
            np.testing.assert_allclose(metrics[f"discriminator/{name}"], wanted, atol=1e-5)


def test_the_cross_entropy_discriminator() -> None:
    teacher, samples = all_scores_by_hand()
    wanted = np.mean(np.log1p(np.exp(-teacher)) + np.log1p(np.exp(samples)))
    found = stepped("gad", FROZEN).metrics["discriminator/loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_rewards_are_the_scores_of_the_discriminator_before_its_update() -> None:
    _, rewards = all_scores_by_hand()
    found = stepped("gad")
    assert moved(networks()[2], found.state.discriminator)
    np.testing.assert_allclose(found.metrics["reward/mean"], rewards.mean(), atol=1e-5)
    spread = rewards.std(axis=1, ddof=1).mean()
    np.testing.assert_allclose(found.metrics["reward/std"], spread, rtol=1e-4)
    norm = np.sqrt(np.mean(advantages_by_hand() ** 2))
    np.testing.assert_allclose(found.metrics["advantage/norm"], norm, rtol=1e-4)
    assert found.metrics["advantage/dead_groups"] == 0


def test_a_group_of_equal_rewards_is_counted_as_dead() -> None:
    # The rounded mean of eight times 12.3 is not 12.3.
    rewards = jnp.asarray([[12.3] * 8, [12.3] * 7 + [12.4]])
    found = steps._reward_metrics(rewards, jnp.zeros_like(rewards))
    assert found["advantage/dead_groups"] == 0.5
    np.testing.assert_allclose(found["reward/std"], 0.1 / np.sqrt(8) / 2, rtol=1e-4)


def test_the_kl_is_not_mixed_into_rewards() -> None:
    with_kl, without = stepped("gad").metrics, stepped("gad", FROZEN).metrics
    for name in ("reward/mean", "reward/std", "advantage/norm", "generator/policy_loss"):
        np.testing.assert_allclose(with_kl[name], without[name], rtol=1e-5, atol=1e-6)


def test_the_gap_to_the_sampler_is_measured() -> None:
    x = alone(texts(), "samples")
    found, _ = logprobs_by_hand(put(networks()[0]), x)
    sampled = np.concatenate([r for group in texts().logprobs for r in group[1:]])
    wanted = np.mean(np.abs(np.asarray(found)[np.asarray(x.mask)] - sampled))
    np.testing.assert_allclose(stepped("gad").metrics["logprobs/gap"], wanted, rtol=1e-5)


def test_imitation_is_the_token_mean_cross_entropy_at_temperature_one() -> None:
    x = alone(texts(), "teacher")
    logprobs, entropy = logprobs_by_hand(put(networks()[0]), x, 1.0)
    # each response stands there SAMPLES times: the mean is the same
    metrics = stepped("seqkd").metrics
    wanted = -np.sum(logprobs * x.mask) / np.sum(x.mask)
    np.testing.assert_allclose(metrics["generator/loss"], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["entropy"], np.sum(entropy * x.mask) / np.sum(x.mask), rtol=1e-5
    )


def test_the_warmup_is_both_updates_at_once() -> None:
    both = stepped("warmup")
    discriminator, generator = stepped("discriminator"), stepped("seqkd")
    close(gradients(both)[0], gradients(generator)[0])
    close(gradients(both)[1], gradients(discriminator)[1])
    close(both.state.generator, generator.state.generator)
    close(both.state.discriminator, discriminator.state.discriminator)
    identical(generator.state.discriminator, networks()[2])
    identical(discriminator.state.generator, networks()[0])
    names = ("discriminator/loss", "generator/loss")
    apart = discriminator.metrics["discriminator/loss"], generator.metrics["generator/loss"]
    np.testing.assert_allclose([both.metrics[name] for name in names], apart, rtol=1e-6)


@pytest.mark.parametrize("kind", ["gad", "seqkd"])
def test_micro_batches_give_what_the_whole_gives(kind: str) -> None:
    halves = np.asarray(rows(texts(), "teacher", 2).groups)
    assert halves.tolist() != [[0, 1, 2, 3], [4, 5, 6, 7]]  # dealt by length, so the order counts
    whole, cut = stepped(kind), stepped(kind, micro_batches=2)
    # Other rows and other orders of sums; 1e-5 also covers advantages, which divide by a spread.
    close(gradients(cut), gradients(whole), 2e-5)
    close(cut.state.generator, whole.state.generator, 1e-5)
    close(cut.state.discriminator, whole.state.discriminator, 1e-5)
    assert cut.metrics.keys() == whole.metrics.keys()
    close(cut.metrics, whole.metrics, 1e-5)


# What must not matter


def test_padding_and_what_is_masked_have_no_influence() -> None:
    def spoil(packed: PackedRows) -> PackedRows:
        padding = packed.segments.own == 0
        return packed._replace(
            tokens=jnp.where(padding, UNUSED, packed.tokens),
            positions=jnp.where(padding, 7, packed.positions),
            targets=jnp.where(packed.mask, packed.targets, UNUSED),
            sequences=jnp.where(packed.mask, packed.sequences, 5),
            sampled_logprobs=jnp.where(packed.mask, packed.sampled_logprobs, -1e9),
        )

    batch = rows(texts(), "pairs"), rows(texts(), "samples")
    assert packing.padding_share(batch[1]) > 0
    spoiled = host(steps.gad_step(GAD, start(), *(spoil(packed) for packed in batch)))
    identical(spoiled, stepped("gad"))
    for gradient in (
        gradients(spoiled)[1]["embedding"][UNUSED],
        gradients(spoiled)[1]["embedding"][0],
    ):
        assert (gradient == 0).all()


def test_a_masked_token_has_no_gradient() -> None:
    def generator_gradient(teacher: PackedRows) -> Params:
        return gradients(host(steps.seqkd_step(GAD, start(), teacher)))[0]

    teacher = rows(texts(), "teacher")
    nothing = teacher._replace(mask=jnp.zeros_like(teacher.mask))
    identical(generator_gradient(nothing), jax.tree.map(np.zeros_like, networks()[0]))
    # Without one response, other ids inside of it change nothing; with it they do.
    (row, last), length = np.asarray(teacher.ends[0, 4, 0]), len(texts().responses[4][0])
    inside = (0, row, slice(last - length + 1, last + 1))
    other = teacher._replace(tokens=teacher.tokens.at[inside].set(UNUSED))
    left_out = teacher.mask & (teacher.sequences != 4)
    found, wanted = (generator_gradient(x._replace(mask=left_out)) for x in (other, teacher))
    identical(found, wanted)
    assert moved(generator_gradient(other), generator_gradient(teacher))


@pytest.mark.parametrize(
    ("shape", "micro_batches"), [((1, 4, 2), 1), ((2, 2, 2), 2), ((4, 1, 1), 1)]
)
def test_a_mesh_gives_what_one_device_gives(
    shape: tuple[int, int, int], micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "SHARDS_STAY", True)
    found, one = mesh_history(shape, micro_batches), history()
    # Sums over shards come in another order; an advantage divides by a spread of scores, and the
    # second step starts from what the first has left of the difference.
    for step in range(2):
        close(gradients(found.outcomes[step]), gradients(one.outcomes[step]), 1e-4)
        close(found.outcomes[step].metrics, one.outcomes[step].metrics, 1e-4)
        for name in ("generator", "discriminator"):
            close(*(getattr(x.outcomes[step].state, name) for x in (found, one)), 1e-4)


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


def test_one_program_serves_all_steps_of_a_shape() -> None:
    assert mesh_history((1, 4, 2), 1).compiled == [1, 0, 0]
    # on one device an earlier test may have compiled it
    assert history().compiled in ([1, 0, 0], [0, 0, 0])


def test_the_kl_is_zero_at_the_first_step_and_grows() -> None:
    at_start, *later = (outcome.metrics["kl/reference"] for outcome in history().outcomes)
    # the same function of the same weights, compiled apart
    assert abs(at_start) < 1e-6
    assert min(later) > 1e-5


def test_steps_count() -> None:
    assert [int(outcome.state.step) for outcome in history().outcomes] == [1, 2, 3]
    assert history().outcomes[-1].metrics["skips/total"] == 0


def test_a_stage_without_kl_needs_no_reference() -> None:
    found = stepped("gad", FROZEN)
    assert found.state.reference is None
    assert "kl/reference" not in found.metrics


def test_the_reference_and_the_key_stay() -> None:
    state = stepped("gad").state
    identical(state.reference, networks()[1])
    identical(state.key, jax.random.key_data(jax.random.key(0)))


def test_a_frozen_discriminator_pays_rewards_and_stays_bit_identical() -> None:
    found = stepped("gad", FROZEN)
    identical(found.state.discriminator, networks()[2])
    assert found.state.discriminator_optimizer is None
    assert "discriminator/gradient_norm" not in found.metrics
    for name in ("reward/mean", "reward/std"):
        np.testing.assert_allclose(found.metrics[name], stepped("gad").metrics[name], rtol=1e-5)
    assert moved(networks()[0], found.state.generator)


# A step that goes wrong


def spoiled(state: TrainState, how: str) -> TrainState:
    """Returns the state with a network that cannot take a step."""
    generator, discriminator = state.generator, state.discriminator
    if how == "NaN in the discriminator":
        scale = discriminator["final_norm"]["scale"].at[0].set(jnp.nan)
        discriminator = discriminator | {"final_norm": {"scale": scale}}
    elif how == "NaN in the generator":
        scale = generator["final_norm"]["scale"].at[0].set(jnp.nan)
        generator = generator | {"final_norm": {"scale": scale}}
    else:
        # The loss is finite, about 1e25; the square of the gradient is not.
        kernel = discriminator["score"]["kernel"] * 1e25
        discriminator = discriminator | {"score": discriminator["score"] | {"kernel": kernel}}
    return state._replace(generator=generator, discriminator=discriminator)


FAILURES = ["NaN in the discriminator", "NaN in the generator", "overflow of a gradient"]


@pytest.mark.parametrize("how", FAILURES)
def test_a_step_that_is_not_finite_moves_nothing_and_the_next_goes_on(how: str) -> None:
    batch = [(rows(texts(seed), "pairs"), rows(texts(seed), "samples")) for seed in range(3)]
    state, _ = steps.gad_step(GAD, start(), *batch[0])
    healthy = jax.tree.map(jnp.copy, state)
    bad = spoiled(state, how)
    before = host((bad, {})).state
    bad, metrics = steps.gad_step(GAD, bad, *batch[1])
    after = host((bad, {})).state
    identical(after._replace(step=0, skips=0), before._replace(step=0, skips=0))
    assert after.step == before.step + 1
    assert after.skips.tolist() == [1, 1]
    assert (metrics["skips/total"], metrics["skips/consecutive"]) == (1, 1)
    if how == "overflow of a gradient":
        assert np.isfinite(metrics["discriminator/loss"])
        assert np.isinf(metrics["discriminator/gradient_norm"])
    # once more, then with the healthy networks: as if the two had not been
    bad, metrics = steps.gad_step(GAD, bad, *batch[1])
    assert (metrics["skips/total"], metrics["skips/consecutive"]) == (2, 2)
    good = bad._replace(generator=jax.tree.map(jnp.copy, healthy.generator))
    good = good._replace(discriminator=jax.tree.map(jnp.copy, healthy.discriminator))
    good, metrics = steps.gad_step(GAD, good, *batch[2])
    assert (metrics["skips/total"], metrics["skips/consecutive"]) == (2, 0)
    wanted = host(steps.gad_step(GAD, healthy, *batch[2]))
    identical(
        host((good, {})).state._replace(step=0, skips=0), wanted.state._replace(step=0, skips=0)
    )


def test_seqkd_skips_as_well() -> None:
    bad = spoiled(start(), "NaN in the generator")
    before = host((bad, {})).state
    after = host(steps.seqkd_step(GAD, bad, rows(texts(), "teacher")))
    identical(after.state._replace(step=0, skips=0), before._replace(step=0, skips=0))
    assert after.state.skips.tolist() == [1, 1]


def test_all_shards_of_a_mesh_skip_together() -> None:
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        bad = start(mesh=mesh)
        # one number, on one shard of the embedding: the rest of the network is healthy
        table = jax.device_get(bad.discriminator["embedding"]).copy()
        table[np.asarray(texts().prompts[0][0]), 0] = np.nan
        table = jax.device_put(table, bad.discriminator["embedding"].sharding)
        bad = bad._replace(discriminator=bad.discriminator | {"embedding": table})
        before = devices.fetch(bad._replace(key=None))
        batch = (rows(texts(), which, mesh=mesh) for which in ("pairs", "samples"))
        state, _ = steps.gad_step(MESH_GAD, bad, *batch)
        after = devices.fetch(state._replace(key=None))
    identical(after._replace(step=0, skips=0), before._replace(step=0, skips=0))
    assert after.skips.tolist() == [1, 1]


def with_lost_scores(
    monkeypatch: pytest.MonkeyPatch, lost: list[tuple[int, int]], value: float = np.nan
) -> Outcome:
    """Returns a GAD step in which the scores of (prompt, member) are lost; 0 is the teacher."""
    real = forward.response_scores

    def lossy(config: DecoderConfig, params: Params, packed: PackedRows) -> jax.Array:
        scores = real(config, params, packed)
        place = {int(group): row for row, group in enumerate(packed_groups)}
        for prompt, member in lost:
            scores = scores.at[place[prompt], member].set(value)
        return scores

    pairs = rows(texts(), "pairs")
    packed_groups = np.asarray(pairs.groups[0])
    monkeypatch.setattr(forward, "response_scores", lossy)
    # A program of its own: others have been traced with the real scores.
    program = dataclasses.replace(GAD, kl_coefficient=0.0, log_ratio_max=20.0 + len(lost) / 64)
    state = start(program)
    return host(steps.gad_step(program, state, pairs, rows(texts(), "samples")))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lost_score_costs_its_sample_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    found = with_lost_scores(monkeypatch, [(3, 2)], value)
    assert found.state.skips.tolist() == [0, 0]
    assert found.metrics["discriminator/nonfinite_scores"] == 1
    assert all(np.isfinite(metric) for metric in found.metrics.values())
    # The generator: the advantages of the two samples that are left of prompt 3 are ±1/√2.
    teacher, rewards = (scores.copy() for scores in all_scores_by_hand())
    advantages = advantages_by_hand().copy()
    left = [0, 2]
    spread = rewards[3, left].std(ddof=1)
    advantages[3, left] = (rewards[3, left] - rewards[3, left].mean()) / (spread + 1e-6)
    advantages[3, 1] = 0
    np.testing.assert_allclose(np.abs(advantages[3, left]), 0.5**0.5, rtol=1e-4)
    generator, other, _ = (put(network) for network in networks())
    x = alone(texts(), "samples")
    wanted = reinforce_by_hand(generator, other, x, jnp.asarray(advantages.ravel()), 0.0, 0.0)
    close(gradients(found)[0], wanted, 2e-5)
    # The discriminator: the mean over all pairs, of which that one counts nothing.
    keep = np.ones_like(rewards)
    keep[3, 1] = 0
    each = np.log1p(np.exp(rewards - teacher)) * keep
    np.testing.assert_allclose(found.metrics["discriminator/loss"], each.mean(), rtol=1e-5)
    margin = ((teacher - rewards) * keep).sum() / keep.sum()
    np.testing.assert_allclose(found.metrics["discriminator/margin"], margin, atol=1e-5)
    np.testing.assert_allclose(
        found.metrics["reward/mean"], (rewards * keep).sum() / keep.sum(), atol=1e-5
    )


def test_a_group_that_lost_all_scores_is_dead_and_the_step_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = with_lost_scores(monkeypatch, [(3, member) for member in range(1, SAMPLES + 1)])
    assert found.state.skips.tolist() == [0, 0]
    assert found.metrics["advantage/dead_groups"] == 1 / PROMPTS
    assert found.metrics["discriminator/nonfinite_scores"] == SAMPLES
    assert moved(found.state.generator, networks()[0])
    assert moved(found.state.discriminator, networks()[2])


def test_a_discriminator_that_lost_half_of_its_scores_is_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = [(prompt, m) for prompt in range(PROMPTS // 2) for m in range(1, SAMPLES + 1)]
    found = with_lost_scores(monkeypatch, half)
    assert np.isnan(found.metrics["discriminator/loss"])
    assert found.state.skips.tolist() == [1, 1]
    identical(found.state.generator, networks()[0])
    identical(found.state.discriminator, networks()[2])


@pytest.mark.parametrize("how", FAILURES)
def test_the_first_broken_leaf_of_the_network_at_fault_is_named(how: str) -> None:
    batch = rows(texts(1), "pairs"), rows(texts(1), "samples")
    _, metrics = steps.gad_step(GAD, spoiled(start(), how), *batch)
    broken = {part: int(metrics[f"{part}/broken_leaf"]) for part in ("generator", "discriminator")}
    part = "generator" if how == "NaN in the generator" else "discriminator"
    assert broken[part] >= 0
    if part == "generator":
        assert broken["discriminator"] == -1


def test_samples_that_are_all_the_same_teach_the_generator_nothing() -> None:
    """As when all are empty (an end token alone), or all are cut after the same tokens.

    Their scores differ by rounding, and so do their advantages from 0: but those sum to 0.
    """
    for response in ([1], [5, 6, 7]):
        same = texts()
        group = [np.asarray(response, np.int32)] * (SAMPLES + 1)
        same = same._replace(
            responses=[group] * PROMPTS,
            logprobs=[[np.zeros(len(r), np.float32) for r in group]] * PROMPTS,
        )
        program = dataclasses.replace(GAD, kl_coefficient=0.0)
        state = start(program)
        found = host(steps.gad_step(program, state, rows(same), rows(same, "samples")))
        assert found.metrics["advantage/dead_groups"] == 1
        assert found.metrics["advantage/norm"] < 0.5
        assert found.metrics["generator/gradient_norm"] < 1e-5
        assert all(np.isfinite(metric) for metric in found.metrics.values())
        np.testing.assert_allclose(found.metrics["discriminator/loss"], np.log(2), rtol=1e-6)
