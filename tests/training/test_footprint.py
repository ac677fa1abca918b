"""Memory by arithmetic: exact where shapes decide, by hand where it is an estimate."""

import dataclasses

import jax
import numpy as np
import pytest

from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import adapters, decoder
from gad_jax.models.config import Lora
from gad_jax.rollout import memory, prefill
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.optimizer import Optimizer
from gad_jax.settings.reward import Reward
from gad_jax.training import architectures, bases, footprint, state
from gad_jax.training.footprint import Lengths
from gad_jax.training.rewards import models

FLAGS = ("--config=tiny", "--stage=gad", "--batch.prompts=8", "--batch.micro_batch_prompts=4")
DECODERS = ("rollout", "evaluation")
LENGTHS = Lengths(np.full(8, 30), np.full((8, 3), 20))


@pytest.fixture(scope="module")
def run() -> tuple:
    """The settings and the networks of the tiny run."""
    config = options.read(Config, FLAGS, program="train", description="")
    return config, architectures.configs(config)


def test_the_state_and_the_decode_copy_are_those_of_the_run(run) -> None:
    config, networks = run
    mesh = make_mesh(fsdp=4, tensor=2)
    program = state.make_program(config, "gad", *networks)
    found = footprint.sizes(program, mesh)
    whole = state.abstract(program, mesh)
    assert found.device == devices.device_bytes(whole)
    assert found.generator == devices.device_bytes(whole.generator)
    one = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(one):
        copy = jax.eval_shape(
            lambda p: prefill.decode_copy(networks[0], p), decoder.abstract(networks[0])
        )
    assert footprint.copy_bytes(program.generator, one) == sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(copy)
    )


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_a_rounded_decode_copy_is_counted_and_evaluation_has_another(run, weights: str) -> None:
    flags = (*FLAGS, f"--rollout.weights={weights}")
    config = options.read(Config, flags, program="train", description="")
    networks = architectures.configs(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        copy = jax.eval_shape(
            lambda p: prefill.decode_copy(networks[0], p), decoder.abstract(networks[0])
        )
    copied = footprint.copy_bytes(networks[0], mesh)
    assert copied == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(copy))
    found = {n.program: n.bytes for n in footprint.needs(config, networks, mesh, LENGTHS)}
    full = footprint.copy_bytes(run[1][0], mesh)
    assert copied < full
    assert found["rollout: decode"]["decode copy"] == copied
    assert found["evaluation: decode"]["decode copy"] == full
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, heldout=""))
    assert "evaluation: decode" not in [
        need.program for need in footprint.needs(without, networks, mesh, LENGTHS)
    ]


def test_an_evaluation_takes_what_its_batch_slots_and_answers_need(run) -> None:
    def found(*flags: str) -> dict[str, dict[str, int]]:
        given = ("--config=tiny", *flags)
        config = options.read(Config, given, program="train", description="")
        mesh = make_mesh(devices=jax.devices()[:1])
        return {n.program: n.bytes for n in footprint.needs(config, run[1], mesh, LENGTHS)}

    def cache(*flags: str) -> int:
        return found(*flags)["evaluation: decode"]["KV cache"]

    limits = ("--data.max_prompt_tokens=50", "--evaluation.max_new_tokens=100")
    token = memory.token_bytes(run[1][0])
    assert cache(*limits, "--rollout.slots=4") == 4 * 150 * token
    assert cache(*limits, "--evaluation.batch_prompts=3") == 3 * 150 * token
    assert cache(*limits, "--evaluation.prompts=2") == 2 * 150 * token
    assert cache(*limits, "--data.heldout=3") == 3 * 150 * token
    # 6 prompts of 30 tokens, and then 48, in a power of two
    few, many = (
        found("--evaluation.prompts=0", f"--evaluation.batch_prompts={n}")["evaluation: prefill"][
            "prompt KV cache"
        ]
        for n in (6, 48)
    )
    assert (few, many) == (256 * token, 2048 * token)
    assert [name for name in found("--stage=seqkd") if name.startswith("evaluation")] == [
        "evaluation: prefill",
        "evaluation: decode",
    ]


def test_imitation_is_of_one_response_to_each_prompt(run) -> None:
    """However many the run would sample in other stages."""
    mesh = make_mesh(devices=jax.devices()[:1])

    def update(stage: str, samples: int) -> int:
        flags = ("--config=tiny", f"--stage={stage}", f"--rollout.samples={samples}")
        config = options.read(Config, flags, program="train", description="")
        lengths = Lengths(np.full(8, 30), np.full((8, 1 + samples), 20))
        found = footprint.needs(config, run[1], mesh, lengths)
        return next(n.bytes["temporary"] for n in found if n.program.endswith("update"))

    assert update("seqkd", 2) == update("seqkd", 16)
    assert update("seqkd", 16) < update("offpolicy", 16) / 2


def needs(run, **batch: int) -> dict[str, int]:
    config, networks = run
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, **batch))
    mesh = make_mesh(devices=jax.devices()[:1])
    return {n.program: n.total for n in footprint.needs(config, networks, mesh, LENGTHS)}


def test_gradients_are_summed_where_there_are_several_micro_batches(run) -> None:
    """The discriminator's gradients, and the generator's twice; without activations to speak of."""
    config, networks = run
    program = state.make_program(config, "gad", *networks)
    size = footprint.sizes(program, make_mesh(devices=jax.devices()[:1]))
    several, single = needs(run)["gad: update"], needs(run, micro_batch_prompts=8)["gad: update"]
    assert several > size.device + size.discriminator + 2 * size.generator
    assert single > size.device + size.discriminator + size.generator
    parts = {f"{what}: {part}" for what in DECODERS for part in ("prefill", "decode")}
    assert set(needs(run)) == {"gad: update"} | parts


def test_kernels_that_a_step_rounds_are_a_copy_and_their_gradients_too(run) -> None:
    network = dataclasses.replace(run[1][0], compute_dtype="bfloat16")
    layers = decoder.abstract(network)["layers"]
    numbers = sum(part["kernel"].size for part in layers.values() if "kernel" in part)
    one = make_mesh(devices=jax.devices()[:1])
    assert footprint._rounded_bytes(network, one) == (2 * numbers, 4 * numbers)
    assert footprint._rounded_bytes(run[1][0], one) == (0, 0)
    adapters_only = dataclasses.replace(network, lora=Lora(2, 4.0, ("query",)))
    assert footprint._rounded_bytes(adapters_only, one) == (0, 0)


def test_smaller_micro_batches_keep_less(run) -> None:
    assert needs(run, micro_batch_prompts=1)["gad: update"] < needs(run)["gad: update"]


def test_what_the_backward_pass_keeps_depends_on_remat(run) -> None:
    config, networks = run
    mesh = make_mesh(devices=jax.devices()[:1])
    kept = [
        footprint.largest(
            config,
            (
                dataclasses.replace(networks[0], remat=remat),
                dataclasses.replace(networks[1], remat=remat),
            ),
            mesh,
            LENGTHS,
        ).total
        for remat in ("full", "dots", "none")
    ]
    assert kept == sorted(set(kept))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_frozen_base_is_counted_once_and_has_no_gradients(run, dtype: str) -> None:
    flags = (*FLAGS, "--lora.rank=2", f"--lora.base_dtype={dtype}")
    config = options.read(Config, flags, program="train", description="")
    networks = architectures.configs(config)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        frozen = bases.abstract(config, networks, mesh).generator
        assert frozen is not None
        whole = adapters.join(frozen, adapters.abstract(networks[0])[1])
        copy = jax.eval_shape(lambda p: prefill.decode_copy(networks[0], p), whole)
        shared = prefill.shared(networks[0], whole)
        assert footprint.copy_bytes(networks[0], mesh, frozen) == sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(copy)
        ) - devices.device_bytes(shared)
    assert frozen["embedding"] in shared
    kernels = jax.tree.leaves(frozen["layers"]["up"]["kernel"])
    assert all((leaf in shared) == (dtype == "int8") for leaf in kernels)
    base = devices.device_bytes(bases.abstract(config, networks, mesh))
    program = state.make_program(config, "gad", *networks)
    held = base + footprint.sizes(program, mesh).device
    found = footprint.needs(config, networks, mesh, LENGTHS)
    assert {need.bytes["weights and moments"] for need in found} == {held}
    assert held < footprint.sizes(state.make_program(run[0], "gad", *run[1]), mesh).device / 2


def test_baselines_hold_what_they_need(run) -> None:
    config, networks = run
    mesh = make_mesh(devices=jax.devices()[:1])

    def found(**changes) -> dict[str, footprint.Need]:
        changed = dataclasses.replace(config, **changes)
        return {need.program: need for need in footprint.needs(changed, networks, mesh, LENGTHS)}

    rollout, evaluation = ({f"{what}: prefill", f"{what}: decode"} for what in DECODERS)
    one = found(stage="dpo")
    assert set(one) == {"dpo: update", *rollout, *evaluation}
    several = found(stage="dpo", dpo=dataclasses.replace(config.dpo, answers=5))
    name = "dpo: update"
    assert several[name].bytes["temporary"] > one[name].bytes["temporary"]
    seqkd = found(stage="seqkd")
    assert set(seqkd) == {"seqkd: update", *evaluation}
    weights = [
        needs["weights and moments"] for needs in (one[name].bytes, seqkd["seqkd: update"].bytes)
    ]
    program = state.make_program(dataclasses.replace(config, stage="dpo"), "dpo", *networks)
    assert weights[0] - weights[1] == footprint.sizes(program, mesh).generator  # the reference
    given = found(stage="dpo", dpo=dataclasses.replace(config.dpo, rejected="column"))
    assert set(given) == {"dpo: update", *evaluation}
    both = {"warmup: update", "rejection: update", *rollout, *evaluation}
    assert set(found(stage="warmup,rejection")) == both


def test_moments_on_the_host_leave_the_device_but_for_a_part(run) -> None:
    config, networks = run
    mesh = make_mesh(devices=jax.devices()[:1])
    there = dataclasses.replace(config, optimizer=Optimizer(placement="host"))
    here, hosted = (state.make_program(each, "gad", *networks) for each in (config, there))
    before, after = footprint.sizes(here, mesh), footprint.sizes(hosted, mesh)
    numbers = (before.generator + before.discriminator) // 4
    assert after.host == 2 * 4 * numbers  # without the two counts of steps
    assert before.device - after.device == after.host
    assert before.total == after.total
    needs = [footprint.needs(each, networks, mesh, LENGTHS)[0] for each in (config, there)]
    saved = needs[0].total - needs[1].total
    embedding = 512 * 32  # the largest array outside of the layers
    assert after.host - 2 * 4 * embedding <= saved <= after.host


def test_a_reward_model_stays_on_the_device_and_scores_the_samples(run) -> None:
    config, networks = run
    mesh = make_mesh(devices=jax.devices()[:1])
    plain = {need.program: need.bytes for need in footprint.needs(config, networks, mesh, LENGTHS)}
    config = dataclasses.replace(config, reward=Reward(extra=("model:m",)))
    paying = {"model": dataclasses.replace(networks[1], compute_dtype="bfloat16", remat="none")}
    found = footprint.needs(config, networks, mesh, LENGTHS, paying)
    # 5 norms of 32 numbers and the score head stay in float32
    matrices = 512 * 32 + 2 * (32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 64)
    resident = 2 * matrices + 4 * (5 * 32 + 32 + 1)
    assert [need.program for need in found] == ["gad: update", "reward: model", *[*plain][1:]]
    for need in found:
        assert need.bytes["reward model"] == resident
        if need.program in plain:
            assert need.bytes == {"reward model": resident} | plain[need.program]
    weights = found[0].bytes["weights and moments"]
    assert found[1].bytes["weights and moments"] == weights
    shapes = models.abstract(paying["model"], mesh)
    assert shapes["score"]["bias"].dtype == shapes["final_norm"]["scale"].dtype == np.float32
    assert shapes["embedding"].dtype == "bfloat16"
