"""Operations by the mathematics against XLA's own count, where XLA counts everything.

XLA takes the body of a loop once: with one layer, one micro-batch and logits in one piece there is
none that turns twice.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.core import forward, packing, steps
from gad_jax.core.forward import TokenLoss
from gad_jax.core.program import Program
from gad_jax.distributed import sharding
from gad_jax.models import adapters, costs, decoder
from gad_jax.models.config import DecoderConfig, Experts, LayerKind, Lora, alike
from gad_jax.models.costs import Work
from gad_jax.settings import config as settings
from gad_jax.settings import sections
from gad_jax.training import state
from gad_jax.types import PackedRows

NETWORK = DecoderConfig(
    family="llama", vocabulary=512, width=128, mlp_width=384, layers=1, heads=4, kv_heads=2,
    head_width=32, kinds=alike(1e4), norm_epsilon=1e-6, max_positions=512, tied=True, remat="none",
)  # fmt: skip
SCORER = dataclasses.replace(NETWORK, head="score")
TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
PROMPTS, SAMPLES, ASKED, ANSWERED = 4, 8, 40, 60


def rows(count: int, together: bool) -> PackedRows:
    """Prompts of 40 tokens with `count` answers of 60 each: packed, or one pair per row."""
    prompt, answer = np.ones(ASKED, np.int32), np.ones(ANSWERED, np.int32)
    if together:
        prompts, answers = [prompt] * PROMPTS, [[answer] * count] * PROMPTS
        return packing.pack(prompts, answers, row_tokens=608)
    pairs = PROMPTS * count
    return packing.pack([prompt] * pairs, [[answer]] * pairs, row_tokens=ASKED + ANSWERED)


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def program() -> Program:
    config = settings.Config(batch=sections.Batch(vocabulary_chunk=10000))
    return state.make_program(config, "gad", NETWORK, SCORER)


def logprob_sum(params, packed: PackedRows) -> jax.Array:
    first = jax.tree.map(lambda x: x[0], packed)
    return forward.response_logprobs(NETWORK, params, first, 0.8, 10000)[0].sum()


def score_sum(params, packed: PackedRows) -> jax.Array:
    first = jax.tree.map(lambda x: x[0], packed)
    return forward.response_scores(SCORER, params, first).sum()


@pytest.fixture(scope="module")
def networks() -> tuple:
    return decoder.abstract(NETWORK), decoder.abstract(SCORER)


def test_a_forward_pass_costs_what_the_formula_says(networks) -> None:
    packed = jax.tree.map(jnp.asarray, rows(SAMPLES, together=True))
    counted = xla_flops(logprob_sum, networks[0], packed)
    # Norms, rotations, softmax and masks are some percent of the matmuls of a small network.
    assert costs.forward_flops(NETWORK, costs.processed_work(NETWORK, packed)) == pytest.approx(
        counted, rel=0.1
    )


def test_a_gradient_costs_two_forward_passes_more_and_no_second_projection() -> None:
    """The vocabulary projection is most of this network: computing it twice would be a quarter."""
    wide = dataclasses.replace(NETWORK, vocabulary=4096)
    packed = rows(SAMPLES, together=True)
    first = jax.tree.map(lambda x: jnp.asarray(x[0]), packed)

    def loss(params, rows: PackedRows) -> jax.Array:
        def token_loss(logprobs, entropy, inputs):
            return -logprobs, {"entropy": entropy}

        per_token = TokenLoss(wide, 0.8, 10000, token_loss)
        return forward.response_sums(per_token, params, rows, jnp.float32(1))[0]

    counted = xla_flops(jax.value_and_grad(loss), decoder.abstract(wide), first)
    assert costs.training_flops(wide, costs.processed_work(wide, packed)) == pytest.approx(
        counted, rel=0.1
    )


def test_a_gradient_of_adapters_costs_no_gradients_of_kernels() -> None:
    wide = dataclasses.replace(NETWORK, vocabulary=4096, lora=Lora(4, 8.0, TARGETS))
    packed = rows(SAMPLES, together=True)
    first = jax.tree.map(lambda x: jnp.asarray(x[0]), packed)

    def loss(trained, base, rows: PackedRows) -> jax.Array:
        def token_loss(logprobs, entropy, inputs):
            return -logprobs, {"entropy": entropy}

        per_token = TokenLoss(wide, 0.8, 10000, token_loss)
        params = adapters.join(base, trained)
        return forward.response_sums(per_token, params, rows, jnp.float32(1))[0]

    base, trained = adapters.abstract(wide)
    counted = xla_flops(jax.value_and_grad(loss), trained, base, first)
    work = costs.processed_work(wide, packed)
    assert costs.training_flops(wide, work) == pytest.approx(counted, rel=0.1)
    assert costs.training_flops(wide, work) < 0.75 * costs.training_flops(wide.merged, work)
    assert costs.trained_parameters(wide) == costs.adapter_weights(wide)
    assert costs.trained_parameters(wide.merged) == costs.parameters(wide.merged)


def test_packed_work_by_hand() -> None:
    packed = rows(2, together=True)
    prompt = sum(range(1, ASKED))  # a token sees itself and those before
    answer = sum(range(ASKED, ASKED + ANSWERED + 1))
    tokens = PROMPTS * (ASKED - 1 + 2 * (ANSWERED + 1))
    assert costs.packed_work(NETWORK, packed) == Work(
        tokens, PROMPTS * (prompt + 2 * answer), PROMPTS * 2 * ANSWERED
    )


def test_a_window_bounds_what_a_token_attends_to() -> None:
    rope = NETWORK.kinds[0].rope
    kinds = (LayerKind(rope), LayerKind(rope, window=7))
    network = dataclasses.replace(NETWORK, layers=3, kinds=kinds, pattern=(0, 1, 1))
    packed = rows(2, together=True)
    found, full = (costs.packed_work(one, packed) for one in (network, NETWORK))
    # by hand: the first six tokens of a prompt see 1 to 6, all later ones 7
    windowed = 7 * full.tokens - PROMPTS * sum(range(1, 7))
    assert found.attended == full.attended + 2 * windowed
    assert (found.tokens, found.scored) == (full.tokens, full.scored)
    # what devices compute is every layer's lower triangle: a window is a mask there
    done = costs.processed_work(network, packed).attended
    assert done == 3 * costs.processed_work(NETWORK, packed).attended


def test_a_mixture_costs_its_active_experts() -> None:
    mixture = dataclasses.replace(NETWORK, experts=Experts(8, 2, 48, normalised=True))
    leaves = jax.tree_util.tree_leaves_with_path(decoder.abstract(mixture)["layers"])
    sizes = {sharding.path_name(p): leaf.size for p, leaf in leaves if leaf.ndim > 2}
    of_experts = sum(n for name, n in sizes.items() if name.startswith("experts/"))
    router = sizes["experts/router/kernel"]
    active = sum(sizes.values()) - of_experts + router + (of_experts - router) * 2 / 8
    assert costs.layer_weights(mixture) == active
    assert costs.layer_weights(mixture, 8.0) == sum(sizes.values())
    work = Work(10, 0, 0)
    assert costs.forward_flops(mixture, work) == 2 * active * 10


def test_the_experts_that_some_tokens_touch() -> None:
    mixture = dataclasses.replace(NETWORK, experts=Experts(8, 2, 48, normalised=True))
    assert costs.touched_experts(NETWORK, 5) == 0
    assert costs.touched_experts(mixture, 1) == pytest.approx(2)
    assert costs.touched_experts(mixture, 2) == pytest.approx(2 + 2 * 6 / 8)
    assert costs.touched_experts(mixture, 1000) == pytest.approx(8)


def test_a_step_costs_a_third_less_than_the_released_recipe(networks) -> None:
    """By XLA's count. All answers have one length here, so that padding plays no part."""
    generator, scorer = networks
    p = program()
    moments = [jax.eval_shape(o.init, n) for o, n in zip(
        (p.generator_optimizer, p.discriminator_optimizer), networks, strict=True)]  # fmt: skip
    start = steps.TrainState(
        jnp.int32(0), jax.random.key(0), generator, moments[0], scorer, moments[1], generator,
        jnp.zeros(2, jnp.int32),
    )  # fmt: skip
    pairs, samples = (
        jax.tree.map(jnp.asarray, rows(n, together=True)) for n in (SAMPLES + 1, SAMPLES)
    )
    ours = xla_flops(lambda s, *rows: steps.gad_step(p, s, *rows), start, pairs, samples)

    alone = jax.tree.map(jnp.asarray, rows(SAMPLES, together=False))
    released = (
        # rewards of the samples; then the teacher's answer next to each of them
        xla_flops(score_sum, scorer, alone)
        + 2 * xla_flops(jax.value_and_grad(score_sum), scorer, alone)
        # old and reference log-probabilities, and the policy's
        + 2 * xla_flops(logprob_sum, generator, alone)
        + xla_flops(jax.value_and_grad(logprob_sum), generator, alone)
    )
    print(f"a GAD step: {ours / 1e9:.2f} GFLOP, {1 - ours / released:.0%} fewer than the release")
    assert ours <= 0.7 * released
