"""`python -m gad_jax.bench rollout`: tokens per second of the engine, and what limits it.

Two mixes of response lengths: all the same, one slot each, and a heavy tail (lognormal) over fewer
slots, where a slot that ends takes the next response. Beside the second stand static batches of
the same responses, each of which lasts as long as its longest.
"""

import dataclasses
import heapq
import statistics
import time
from typing import Any, NamedTuple

import numpy as np

from gad_jax import guard, options
from gad_jax.config import option


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What is measured."""

    model: str = option("smollm2-135m-instruct", "model, as in --student.path")
    prompt_tokens: int = option(32, "tokens of a prompt", "tokens")
    uniform: str = option("8,32", "responses at once, each of --response_tokens", "responses")
    response_tokens: int = option(128, "tokens of a response in the uniform mix", "tokens")
    responses: int = option(256, "responses of the heavy-tailed mix; 0: leave it out", "responses")
    slots: int = option(16, "slots of the heavy-tailed mix", "responses")
    mean: float = option(60.0, "mean of the lognormal lengths", "tokens")
    spread: float = option(0.8, "standard deviation of their logarithm")
    longest: int = option(512, "a longer response is cut", "tokens")
    repeats: int = option(3, "timed repeats, after one that compiles")
    torch: bool = option(True, "also time transformers' generate, if torch is installed")

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "response_tokens", "slots", "longest", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if not all(size.isdigit() and int(size) > 0 for size in self.sizes):
            raise ValueError(f"uniform={self.uniform!r} must be numbers with commas, as 8,32")

    @property
    def sizes(self) -> list[str]:
        """The numbers of responses at once."""
        return [size for size in self.uniform.split(",") if size]


class Timing(NamedTuple):
    """One mix: median seconds, tokens, occupancy of the slots, and steps of the loop."""

    seconds: float
    tokens: int
    occupancy: float
    steps: int


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    chosen = options.parse(
        Rollout,
        argv,
        program="python -m gad_jax.bench rollout",
        description="Tokens per second of sampling, its occupancy and its share of the roofline.",
    )
    return guard.run_guarded(lambda: _run(chosen))


def _run(chosen: Rollout) -> int:
    import jax

    from gad_jax import ceilings, runs, sharding
    from gad_jax.models import source

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    best = ceilings.measure()
    with jax.set_mesh(mesh):
        network = runs.load_student(chosen.model, mesh)
        sampler = _Sampler(chosen, network, mesh)
        for size in map(int, chosen.sizes):
            lengths = np.full(size, chosen.response_tokens)
            timing = sampler.time(lengths, size)
            floor = sampler.floor_seconds(timing.steps, size, chosen.prompt_tokens, best)
            rate = timing.tokens / timing.seconds
            print(
                f"uniform, {size} × {chosen.response_tokens}: {rate:,.0f} tokens/s, "
                f"{1e3 * timing.seconds / timing.steps:.1f} ms a step, "
                f"{floor / timing.seconds:.0%} of the roofline",
                flush=True,
            )
            theirs = _torch_seconds(chosen, source.resolve(chosen.model), size)
            if theirs is not None:
                print(f"  transformers: ours is {theirs / timing.seconds:.2f} times as fast")
        if chosen.responses:
            _heavy_tail(chosen, sampler)
    return guard.Exit.OK


def _heavy_tail(chosen: Rollout, sampler: "_Sampler") -> None:
    drawn = np.random.default_rng(0).lognormal(
        np.log(chosen.mean) - chosen.spread**2 / 2, chosen.spread, chosen.responses
    )
    lengths = np.clip(np.rint(drawn).astype(int), 1, chosen.longest)
    refilled = sampler.time(lengths, chosen.slots)
    parts = [lengths[i : i + chosen.slots] for i in range(0, len(lengths), chosen.slots)]
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
    """Returns the steps until all is done when each response takes the slot that is free first."""
    free = [0] * slots
    for length in lengths:
        heapq.heapreplace(free, free[0] + int(length))
    return max(free)


class _Sampler:
    """The engine on one device, called with lengths."""

    def __init__(self, chosen: Rollout, network: Any, mesh: Any):
        from gad_jax.rollout import engine

        self.chosen, self.network, self.mesh = chosen, network, mesh
        self.weights = engine.prepare(network.config, network.params)

    def time(self, lengths: np.ndarray, slots: int, shrink: bool = True) -> Timing:
        """Returns the median of the repeats. Without `shrink` empty slots run to the end."""
        import jax

        from gad_jax.rollout import engine

        chosen, config = self.chosen, self.network.config
        random = np.random.default_rng(1)
        size = (len(lengths), chosen.prompt_tokens)
        prompts = list(random.integers(0, config.vocabulary, size).astype(np.int32))
        limit = int(max(lengths.max(), chosen.longest))
        settings = engine.Settings(1, limit, (), 0, slots=slots, move_to_fewer=shrink)

        def once() -> tuple[Any, Any]:
            return engine.trace(
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

        rollout, segments = once()
        seconds = []
        for _ in range(chosen.repeats):
            started = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - started)
        return Timing(
            statistics.median(seconds),
            int(lengths.sum()),
            engine.occupancy(rollout, segments, 1),
            sum(part.steps for part in segments),
        )

    def floor_seconds(self, steps: int, slots: int, prompt: int, best: Any) -> float:
        """Returns the least seconds of so many steps: the weights and the tokens' caches read once
        a step, or two operations per weight and response, whichever takes longer."""
        import jax

        weights = sum(x.nbytes for x in jax.tree.leaves((self.weights.layers, self.weights.head)))
        config = self.network.config
        token = 2 * config.layers * config.kv_heads * config.head_width
        itemsize = self.weights.head.dtype.itemsize
        cache = token * itemsize * slots * (prompt + steps / 2)
        flops = 2 * weights / itemsize * slots
        return steps * max((weights + cache) / best.bytes_per_second, flops / best.flops_per_second)


def _torch_seconds(chosen: Rollout, directory: Any, size: int) -> float | None:
    """Returns the median seconds of transformers' generate, or None without torch."""
    if not chosen.torch:
        return None
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True
    ).eval()
    prompts = torch.randint(0, model.config.vocab_size, (size, chosen.prompt_tokens))
    tokens = chosen.response_tokens

    def once() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
            )
        return time.perf_counter() - started

    once()
    return statistics.median(once() for _ in range(chosen.repeats))
