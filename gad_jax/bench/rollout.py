"""`python -m gad_jax.bench rollout`: tokens per second of the engine, and what limits it.

Two mixes of response lengths are timed. In the first all lengths are equal and each response has
its slot. In the second they have a heavy tail (lognormal) and share fewer slots, where a slot that
ends takes the next response. The second is compared with static batches of the same responses, each
of which lasts as long as its longest.
"""

import dataclasses
import heapq
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from gad_jax.base import exits
from gad_jax.bench import limits, peers
from gad_jax.bench.peers import Peer
from gad_jax.distributed import ceilings, devices
from gad_jax.distributed.ceilings import Ceilings
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import costs, source
from gad_jax.rollout import engine, memory, prefill, ring
from gad_jax.rollout.queue import make_queue
from gad_jax.settings import sections
from gad_jax.settings.config import Config
from gad_jax.training import architectures, loading

if TYPE_CHECKING:
    from gad_jax.bench.__main__ import RolloutBench


class Timing(NamedTuple):
    """One mix: median seconds in all, those of the prefill, tokens drawn, the slots' occupancy, and
    steps of the decode loop."""

    seconds: float
    prefill: float
    tokens: int
    occupancy: float
    steps: int

    @property
    def decode(self) -> float:
        """Seconds of the decode loop: what is left without the prefill."""
        return self.seconds - self.prefill


def run(chosen: "RolloutBench") -> int:
    """Runs the benchmark; returns the exit code."""
    mesh = make_mesh(devices=jax.devices()[:1])
    others = [peers.llama_cpp(chosen.gguf)]
    if chosen.torch:
        others.append(peers.transformers(source.resolve(chosen.model)))
    with jax.set_mesh(mesh):
        network = loading.load_student(chosen.model, mesh)
        options = Config(rollout=sections.Rollout(weights=chosen.weights))
        architectures.check_devices(options)
        architectures.check_experts(options, network.config, network.config)
        config = dataclasses.replace(network.config, decode_weights=chosen.weights)
        network = dataclasses.replace(network, config=config)
        longest = max(
            chosen.response_tokens if chosen.sizes else 0, chosen.longest if chosen.responses else 0
        )
        flags = "--prompt_tokens with --response_tokens and --longest"
        limits.check(network.config, chosen.model, chosen.prompt_tokens + longest, flags)
        half = chosen.weights == "bfloat16"
        best = ceilings.measure("bfloat16" if half else network.config.compute_dtype)
        sampler = _Sampler(chosen, network, mesh)
        for size in map(int, chosen.sizes):
            _uniform(chosen, sampler, size, best, [peer for peer in others if peer])
        if chosen.responses:
            _heavy_tail(chosen, sampler)
    return exits.Exit.OK


def _uniform(
    chosen: "RolloutBench", sampler: "_Sampler", size: int, best: Ceilings, others: list[Peer]
) -> None:
    lengths = np.full(size, chosen.response_tokens)
    timing = sampler.time(lengths, size)
    floor = sampler.floor_seconds(timing.steps, size, chosen.prompt_tokens, best)
    print(
        f"uniform, {size} × {chosen.response_tokens}: {timing.tokens / timing.seconds:,.0f} "
        f"tokens/s; {decode_text(timing, floor)}; prefill "
        f"{size * chosen.prompt_tokens / timing.prefill:,.0f} tokens/s",
        flush=True,
    )
    # The cost should follow the tokens that are drawn, not the limit that is set.
    twice = sampler.time(lengths, size, limit=2 * sampler.limit(lengths))
    print(f"  with twice the max_new_tokens: {twice.seconds / timing.seconds:.2f} times as long")
    shape = (size, chosen.prompt_tokens)
    prompts = np.random.default_rng(1).integers(0, sampler.network.config.vocabulary, shape)
    for peer in others:
        peer.run(prompts, 2)  # untimed: the first run allocates and loads kernels
        runs = [peer.run(prompts, chosen.response_tokens) for _ in range(chosen.repeats)]
        their_prefill = statistics.median(run.prefill for run in runs)
        their_decode = statistics.median(run.decode for run in runs)
        seconds = their_prefill + their_decode
        decode = f"decode {their_decode / timing.decode:.2f}, " if timing.decode > 0 else ""
        print(
            f"  {peer.name}: {timing.tokens / seconds:,.0f} tokens/s; ours is "
            f"{seconds / timing.seconds:.2f} times as fast ({decode}"
            f"prefill {their_prefill / timing.prefill:.2f})",
            flush=True,
        )


def decode_text(timing: Timing, floor: float) -> str:
    """Returns the time of a decode step and its share of the roofline, `floor` seconds in all.

    The time is a difference of two, and of a few short steps it can be less than their noise.
    """
    if timing.decode <= 0:
        return "decode took less than the noise of the prefill (raise --response_tokens)"
    step = 1e3 * timing.decode / timing.steps
    return f"decode {step:.1f} ms a step, {floor / timing.decode:.0%} of the roofline"


def _heavy_tail(chosen: "RolloutBench", sampler: "_Sampler") -> None:
    drawn = np.random.default_rng(0).lognormal(
        np.log(chosen.mean) - chosen.spread**2 / 2, chosen.spread, chosen.responses
    )
    lengths = np.clip(np.rint(drawn).astype(int), 1, chosen.longest)
    refilled = sampler.time(lengths, chosen.slots)
    parts = [lengths[i : i + chosen.slots] for i in range(0, len(lengths), chosen.slots)]
    # A static batch keeps its slots until its longest response has ended.
    static = [sampler.time(part, chosen.slots, shrink=False) for part in parts]
    seconds = sum(part.seconds for part in static)
    ideal = greedy_steps(lengths, chosen.slots)
    print(
        f"heavy tail, {chosen.responses} responses of mean {lengths.mean():.0f} over "
        f"{chosen.slots} slots: {refilled.tokens / refilled.seconds:,.0f} tokens/s, "
        f"{seconds / refilled.seconds:.2f} times static batches of {chosen.slots}; the schedule's "
        f"ideal is {sum(part.max() for part in parts) / ideal:.2f}"
    )
    print(
        f"  occupancy {refilled.occupancy:.0%} (a greedy schedule without moves to fewer slots: "
        f"{lengths.sum() / ideal / chosen.slots:.0%}), {refilled.steps} steps ({ideal})"
    )


def greedy_steps(lengths: np.ndarray, slots: int) -> int:
    """Returns the steps of a schedule in which each response takes the slot that is free first."""
    free = [0] * slots
    for length in lengths:
        heapq.heapreplace(free, free[0] + int(length))
    return max(free)


class _Sampler:
    """The engine on one device, which draws responses of given lengths."""

    def __init__(self, chosen: "RolloutBench", network: Any, mesh: Any):
        self.chosen, self.network, self.mesh = chosen, network, mesh
        self.weights = prefill.decode_copy(network.config, network.params)

    def limit(self, lengths: np.ndarray) -> int:
        """Returns the limit of a response, as a run would set it: the same for short mixes."""
        return int(max(lengths.max(), self.chosen.longest))

    def time(self, lengths: np.ndarray, slots: int, shrink: bool = True, limit: int = 0) -> Timing:
        """Returns the medians of the repeats. Without `shrink` idle slots are kept to the end."""
        chosen, config = self.chosen, self.network.config
        random = np.random.default_rng(1)
        size = (len(lengths), chosen.prompt_tokens)
        prompts = list(random.integers(0, config.vocabulary, size).astype(np.int32))
        most = limit or self.limit(lengths)
        settings = engine.RolloutProgram(1, most, (), 0, slots=slots, move_to_fewer=shrink)

        def once() -> tuple[Any, Any]:
            return engine.sample_responses(
                config,
                self.network.params,
                prompts,
                np.arange(len(prompts)),
                jax.random.key(0),
                settings,
                self.mesh,
                self.weights,
                lengths,
            )

        def prompts_alone() -> None:
            packed = make_queue(prompts, np.arange(len(prompts)), lengths, 1)
            rows = devices.put(packed.rows, self.mesh, "batch")
            cache = prefill.prefill(config, self.network.params, packed.size, *rows)
            jax.block_until_ready(cache)

        rollout, calls = once()
        prompts_alone()
        return Timing(
            statistics.median(_seconds(once) for _ in range(chosen.repeats)),
            statistics.median(_seconds(prompts_alone) for _ in range(chosen.repeats)),
            int(lengths.sum()),
            engine.occupancy(rollout, calls, 1),
            sum(call.steps for call in calls),
        )

    def floor_seconds(self, steps: int, slots: int, prompt: int, best: Ceilings) -> float:
        """Returns the roofline's seconds for so many steps.

        A step reads the weights and the tokens' KV cache once, of a mixture the experts that its
        tokens visit. It takes the FLOPs of a forward pass; the slower of the two counts. The cache
        counts at its mean length, and in a layer with a window no more than that.
        """
        config = self.network.config
        itemsize = ring.head(self.weights).dtype.itemsize
        weights = sum(x.nbytes for x in jax.tree.leaves(ring.read_by_step(self.weights)))
        if config.experts:
            visited = costs.touched_experts(config, slots)
            every = costs.layer_weights(config, config.experts.count)
            weights -= itemsize * (every - costs.layer_weights(config, visited))
        positions = slots * sum(ring.layer_positions(config, prompt + steps // 2))
        cache = memory.token_bytes(config) // config.layers * positions
        flops = costs.forward_flops(config, costs.Work(slots, positions, slots))
        return steps * max((weights + cache) / best.bytes_per_second, flops / best.flops_per_second)


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
