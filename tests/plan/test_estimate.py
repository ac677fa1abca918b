"""Predicted seconds, checked by hand where possible."""

import dataclasses

import pytest

from gad_jax.distributed import targets
from gad_jax.distributed.chips import CHIPS
from gad_jax.distributed.hlo import Collective
from gad_jax.models import costs
from gad_jax.models.config import DecoderConfig, Lora, alike
from gad_jax.plan import estimate, traffic, workload
from gad_jax.plan.programs import Compiled
from gad_jax.settings.config import Config
from gad_jax.settings.reward import Reward
from gad_jax.settings.sections import Batch, Data, Rollout, Student
from gad_jax.training.rewards import models

NETWORK = DecoderConfig(
    family="llama", vocabulary=512, width=128, mlp_width=384, layers=3, heads=4, kv_heads=2,
    head_width=32, kinds=alike(1e4), norm_epsilon=1e-6, max_positions=512, compute_dtype="bfloat16",
)  # fmt: skip
TARGET = targets.parse("h100:1x1")


def step_of(slots: int = 0, remat: str = "dots", **gad: bool) -> dict[str, estimate.Phase]:
    return {phase.name: phase for phase in planned(slots, remat, **gad).phases}


def planned(
    slots: int = 0,
    remat: str = "dots",
    programs: tuple[Compiled, ...] = (),
    reward: Reward | None = None,
    rewarding: models.Networks = models.NONE,
    **gad: bool,
) -> estimate.Step:
    config = Config(
        stage="gad" if gad.get("train_discriminator", True) else "warmup,gad",
        student=Student(remat=remat),  # pyright: ignore[reportArgumentType]
        data=Data(max_prompt_tokens=64),
        batch=Batch(prompts=16, micro_batch_prompts=0, row_tokens=256),
        rollout=Rollout(samples=8, max_new_tokens=128, slots=slots),
        reward=reward or Reward(),
    )
    config = dataclasses.replace(config, gad=dataclasses.replace(config.gad, **gad))
    work = workload.draw(config, workload.LognormalLengths(20.0, 40.0), TARGET)
    both, chip = (NETWORK, NETWORK), CHIPS["h100"]
    return estimate.step(config, "gad", both, TARGET, chip, work, list(programs), rewarding)


def test_the_rollout_waits_for_its_transfers_and_updates_hide_theirs() -> None:
    sent = [Collective("all-reduce", 2, 1, 1000, 450_000_000)]  # 1 ms on the links, 6 µs each
    decode, update = (
        Compiled(name, {}, sent, 0.0) for name in ("rollout: decode", "gad: G and D update")
    )
    alone, both = planned(), planned(programs=(decode, update))
    assert both.transfer_seconds == pytest.approx(0.001 + 0.006)
    updates = sum(phase.seconds for phase in alone.phases if "rollout" not in phase.name)
    assert updates < 0.007
    assert both.seconds == pytest.approx(alone.seconds - updates + 0.007 + 0.007)
    waits = {phase.name for phase in both.phases if phase.transfer_seconds}
    assert waits == {"rollout: decode"}


def test_moments_on_the_host_cross_pcie_three_times_a_step() -> None:
    there = Compiled("gad: G and D update", {}, [], 0.0, hosted=64_000_000, host=90_000_000)
    moments = planned(programs=(there,)).phases[-1]
    assert (moments.name, moments.bytes) == ("moments", 3 * 64e6)
    assert moments.seconds == moments.transfer_seconds == pytest.approx(3e-3)  # at 64 GB/s
    assert planned().phases[-1].name != "moments"
    rates = {name: CHIPS[name].host for name in ("l4", "h200", "rtx6000", "v5e")}
    assert rates == {"l4": 32e9, "h200": 64e9, "rtx6000": 64e9, "v5e": 32e9}


def test_a_gpu_decodes_in_the_slots_of_a_gpu() -> None:
    """Though the plan is made on a CPU, whose runs have fewer."""
    assert step_of()["rollout: decode"] == step_of(slots=64)["rollout: decode"]
    assert step_of()["rollout: decode"] != step_of(slots=32)["rollout: decode"]


def test_fewer_slots_take_more_iterations_and_each_the_latency_of_every_layer() -> None:
    all_at_once = step_of(slots=128)["rollout: decode"]
    iterations = all_at_once.latency_seconds / (3 * CHIPS["h100"].layer_latency)
    assert iterations == pytest.approx(128)  # the longest response is as long as it may be
    one = step_of(slots=1)["rollout: decode"]
    total = one.latency_seconds / (3 * CHIPS["h100"].layer_latency)
    assert 128 * 20 < total < 128 * 60  # 128 samples of about 40 tokens, one after the other
    assert one.flops < all_at_once.flops  # whose idle slots work too


def test_a_backward_pass_is_two_forward_passes_and_a_third_with_full_remat() -> None:
    dots, full = step_of(), step_of(remat="full")
    for name in ("discriminator", "generator"):
        assert full[name].flops == pytest.approx(4 / 3 * dots[name].flops)
    assert dots["generator"].flops == pytest.approx(3 * dots["reference"].flops)
    assert full["reference"].flops == dots["reference"].flops


def test_a_frozen_discriminator_has_no_backward_pass() -> None:
    for remat in ("dots", "full"):
        trained = step_of()["discriminator"].flops
        frozen = step_of(remat=remat, train_discriminator=False)["discriminator"]
        assert frozen.flops == pytest.approx(trained / 3)
        assert frozen.bytes < step_of()["discriminator"].bytes / 3


def test_devices_of_a_tensor_axis_share_the_weights_that_they_read() -> None:
    rows = workload.draw(Config(), workload.LognormalLengths(20.0, 40.0), TARGET).samples
    read = traffic.read_bytes(NETWORK, rows, readers=4)
    assert read == pytest.approx(4 * traffic.read_bytes(NETWORK, rows, readers=1))
    one, two = (traffic.update_bytes(NETWORK, rows, 4, replicas) for replicas in (1, 2))
    assert two - 3 * read == pytest.approx(2 * (one - 3 * read))  # each has moments of its own


def test_a_discriminator_that_pays_nothing_takes_nothing() -> None:
    reward = Reward(discriminator=0.0, extra=("length",))
    names = [phase.name for phase in planned(reward=reward).phases]
    assert "discriminator" not in names
    assert {"rollout: decode", "generator", "reference"} <= set(names)


def test_a_reward_model_reads_the_samples_once() -> None:
    config = dataclasses.replace(NETWORK, head="score")
    assert "reward: model" not in step_of()
    paying = {phase.name: phase for phase in planned(rewarding={"model": config}).phases}
    frozen = step_of(train_discriminator=False)["discriminator"]
    # D reads the teacher's response too, of about the samples' length.
    assert paying["reward: model"].flops == pytest.approx(8 / 9 * frozen.flops, rel=0.1)
    assert paying["reward: model"].bytes > 0


def test_baselines_pay_for_their_snapshot_once() -> None:
    """Of two epochs, the first one samples; DPO compares two responses, and makes logits twice."""

    def phases(stage: str, epochs: float) -> dict[str, estimate.Phase]:
        config = Config(
            stage="warmup,rejection" if stage == "rejection" else stage,
            student=Student(remat="dots"),
            data=Data(max_prompt_tokens=64),
            batch=Batch(prompts=16, row_tokens=256),
            rollout=Rollout(samples=8, max_new_tokens=128),
        )
        options = dataclasses.replace(getattr(config, stage), epochs=epochs)
        config = dataclasses.replace(config, **{stage: options})
        work = workload.draw(config, workload.LognormalLengths(20.0, 40.0), TARGET)
        step = estimate.step(config, stage, (NETWORK, NETWORK), TARGET, CHIPS["h100"], work, [])
        return {phase.name: phase for phase in step.phases}

    once, half = phases("dpo", 1.0), phases("dpo", 2.0)
    assert half["rollout: decode"].flops == once["rollout: decode"].flops / 2
    assert half["generator"] == once["generator"]
    reference, seqkd = once["reference"].flops, phases("seqkd", 1.0)["generator"].flops
    assert 3 * reference < once["generator"].flops < 4 * reference
    assert seqkd < once["generator"].flops < 3 * seqkd
    chosen = phases("rejection", 1.0)
    assert chosen["rollout: decode"].flops > 2 * once["rollout: decode"].flops  # 8 answers, not 1
    assert chosen["rejection: scores"].flops > 0
    assert chosen["generator"].flops == seqkd
    assert "reference" not in chosen


def test_what_was_measured_is_not_predicted_and_a_snapshot_takes_its_share() -> None:
    config = Config(
        stage="dpo",
        student=Student(remat="dots"),
        data=Data(max_prompt_tokens=64),
        batch=Batch(prompts=16, row_tokens=256),
        rollout=Rollout(samples=8, max_new_tokens=128),
    )
    config = dataclasses.replace(config, dpo=dataclasses.replace(config.dpo, epochs=4.0))
    work = workload.draw(config, workload.LognormalLengths(20.0, 40.0), TARGET)
    sizes = {(call.slots, call.capacity) for call in work.snapshot_calls}
    measured = estimate.Measured(6.0, 2.0, dict.fromkeys(sizes, 0.5))
    about = (config, "dpo", (NETWORK, NETWORK), TARGET, CHIPS["h100"], work, [])
    step = estimate.step(*about, measured=measured)
    seconds = {phase.name: phase.seconds for phase in step.phases}
    assert seconds["rollout: prefill"] == 2.0 / 4
    steps = sum(call.steps for call in work.snapshot_calls)
    assert seconds["rollout: decode"] == pytest.approx(0.5 * steps / 4)
    # The update's are dealt out by FLOPs: DPO's generator makes the logits twice.
    assert seconds["generator"] + seconds["reference"] == pytest.approx(6.0)
    assert 3 < seconds["generator"] / seconds["reference"] < 4
    assert step.measured
    assert not estimate.step(*about).measured


def test_a_quantised_base_is_read_as_it_is_stored_and_as_floats() -> None:
    """By hand: of a number, the codes and scale, the float that is written, and that is read."""
    plain = dataclasses.replace(NETWORK, lora=Lora(4, 8.0, ("query",)))
    base = dataclasses.replace(plain, quantisation="nf4")
    found = {}
    for network in (plain, base):
        config = Config(
            stage="gad",
            data=Data(max_prompt_tokens=64),
            batch=Batch(prompts=16, micro_batch_prompts=0, row_tokens=256),
            rollout=Rollout(samples=8, max_new_tokens=128),
        )
        work = workload.draw(config, workload.LognormalLengths(20.0, 40.0), TARGET)
        step = estimate.step(config, "gad", (network, network), TARGET, CHIPS["h100"], work, [])
        found[network.quantisation] = {phase.name: phase.bytes for phase in step.phases}
    kernels = costs.layer_weights(NETWORK)
    more = (0.5 + 2 / 64 + 2) * kernels
    apart = {name: found["nf4"][name] - size for name, size in found["none"].items()}
    assert apart["rollout: prefill"] == pytest.approx(more)
    assert apart["rollout: decode"] == pytest.approx(more * work.iterations)
    assert apart["reference"] == pytest.approx(more * work.samples.tokens.shape[0])
    assert apart["generator"] == pytest.approx(3 * more * work.samples.tokens.shape[0])
    adapters = 4.0 * costs.adapter_weights(base)
    assert found["nf4"]["rollout: reshard"] == 2 * adapters
