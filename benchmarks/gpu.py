"""Decode and update on a GPU: milliseconds, share of the hardware, and what the compiler promised.

    python benchmarks/gpu.py OUT              nine minutes on one H100 or H200
    python benchmarks/gpu.py OUT --small      a network of two layers: tries this script on a CPU

Prints a line per measurement as it is made, so that a run that is cut off still tells something,
and writes them to OUT/gpu.jsonl. Weights are random and made on the device. Each program's kernels
and bytes are counted as by `python -m gad_jax.plan --kernels`; `predicted_ms` is that count at
2.5 µs a kernel and the memory rate of this run.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gad_jax.core import packing, steps
from gad_jax.core.layout import Shape
from gad_jax.distributed import ceilings, devices, kernels, sharding
from gad_jax.distributed.ceilings import Ceilings
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import costs, decoder, families
from gad_jax.models.config import DecoderConfig
from gad_jax.plan import networks
from gad_jax.rollout import engine, prefill, ring
from gad_jax.rollout.queue import make_queue
from gad_jax.rollout.sampling import GREEDY, Sampler
from gad_jax.settings import sections
from gad_jax.settings.config import Config
from gad_jax.training import state

LAUNCH = 2.5e-6
"""Seconds of a kernel's start inside a graph, fitted to one measured decode step."""
PROMPT, SHORT, LONG = 200, 64, 256
COLUMNS = 512
SAMPLED = Sampler(temperature=1.0)
WHOLE_LOOP = {
    "xla_gpu_graph_min_graph_size": 1,
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE,"
    "DYNAMIC_SLICE_FUSION",
}
"""XLA's options that put a whole loop into one graph. WHILE alone would remove every graph."""
NO_GRAPHS = {"xla_gpu_enable_command_buffer": ""}


class Decode(NamedTuple):
    """One variant of the decode loop."""

    title: str
    sampler: Sampler = SAMPLED
    slots: int = 64
    options: Mapping[str, Any] = MappingProxyType({})


class Updating(NamedTuple):
    """One variant of the update."""

    title: str
    chunk: int
    remat: str = "dots"
    unroll: bool = False
    matmul: str = "auto"


DECODES = [
    Decode("greedy", GREEDY),
    Decode("sampled"),
    Decode("sampled, no graphs", options=NO_GRAPHS),
    Decode("sampled, the loop is one graph", options=WHOLE_LOOP),
    Decode("sampled, 32 slots", slots=32),
    Decode("sampled, 128 slots", slots=128),
]
UPDATES = [Updating(f"chunks of {n}", n) for n in (512, 2048, 4096)]
UPDATES.append(Updating("chunks of 4096, layers listed", 4096, unroll=True))
UPDATES.append(Updating("chunks of 2048, remat full", 2048, "full"))
WIDE = [*UPDATES[1:4], Updating("chunks of 4096, 8-bit matmuls", 4096, matmul="float8")]


class Bench:
    """What all measurements share."""

    def __init__(self, out: Path, small: bool, seconds: float) -> None:
        self.started, self.seconds, self.small = time.monotonic(), seconds, small
        self.log = (out / "gpu.jsonl").open("w", encoding="utf-8")
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.on_gpu = devices.platform() == "gpu"
        self.dtype = "bfloat16" if self.on_gpu else "float32"
        with jax.set_mesh(self.mesh):
            self.best: Ceilings = ceilings.measure(self.dtype)
        self.say(
            what="machine",
            device=jax.devices()[0].device_kind,
            jax=jax.__version__,
            terabytes_per_second=self.best.bytes_per_second / 1e12,
            teraflops_of_a_product=self.best.flops_per_second / 1e12,
        )

    def say(self, **found: Any) -> None:
        """Prints a measurement, and keeps it."""
        after = time.monotonic() - self.started
        shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
        print(f"[{after:4.0f} s]", ", ".join(shown), flush=True)
        self.log.write(json.dumps({"after": round(after), **found}) + "\n")
        self.log.flush()

    def each(self, kind: str, variants: Sequence[Any], measure: Callable[[Any], None]) -> None:
        """Measures the variants for which there is time; says which are left, and which fail."""
        for place, variant in enumerate(variants):
            if time.monotonic() - self.started > self.seconds:
                left = "; ".join(each.title for each in variants[place:])
                self.say(what=kind, out_of_time_before=left)
                return
            try:
                measure(variant)
            except jax.errors.JaxRuntimeError as error:
                self.say(what=kind, title=variant.title, failed=str(error)[:200])

    def network(self, name: str, **changes: Any) -> DecoderConfig:
        """Returns one of the shapes of Qwen2.5."""
        half = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14}
        half |= {"num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_936}
        seven = networks.KNOWN["Qwen/Qwen2.5-7B-Instruct"]
        known = seven if name == "7b" else seven | half | {"tie_word_embeddings": True}
        if self.small:
            known = known | {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
            known |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
        found = families.read(known)
        return dataclasses.replace(found, compute_dtype=self.dtype, **changes)

    def compiled(
        self, lowered: Any, options: Mapping[str, Any], steps: int = 1
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the program, and what is known before it runs of one of the steps in its loop."""
        began = time.monotonic()
        if not self.on_gpu:
            program = lowered.compile()
            return program, {"compile_seconds": time.monotonic() - began}
        with tempfile.TemporaryDirectory() as place:
            program = lowered.compile(compiler_options={"xla_dump_to": place, **options})
            seconds = time.monotonic() - began
            found = kernels.launches(*kernels.dumped(Path(place)), program.as_text(), steps)
        predicted = LAUNCH * found.total + found.bytes / self.best.bytes_per_second
        return program, {
            "kernels": found.total,
            "gigabytes": found.bytes / 1e9,
            "graphed": found.in_graphs,
            "waits": found.waits,
            "predicted_ms": 1e3 * predicted,
            "compile_seconds": seconds,
        }


def random_like(tree: Any) -> Any:
    """Returns random arrays of these shapes, made on the device; integers are zeros."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def one(shape: tuple[int, ...], dtype: Any, key: jax.Array) -> jax.Array:
        if not jnp.issubdtype(dtype, jnp.floating):
            return jnp.zeros(shape, dtype)
        return (0.02 * jax.random.normal(key, shape)).astype(dtype)

    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    made = [
        jax.device_put(one(x.shape, x.dtype, key), x.sharding)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, made)


def measure_decode(bench: Bench, name: str, variants: list[Decode]) -> None:
    """Milliseconds of a decode step: the difference of a long and a short rollout."""
    network, mesh = bench.network(name), bench.mesh
    params = sharding.placed(decoder.abstract(network), mesh)
    weights = random_like(
        sharding.with_shardings(
            jax.eval_shape(lambda p: prefill.decode_copy(network, p), params), mesh
        )
    )
    read = sum(x.nbytes for x in jax.tree.leaves(ring.read_by_step(weights)))
    itemsize = ring.head(weights).dtype.itemsize
    token = 2 * network.layers * network.kv_heads * network.head_width * itemsize

    def measure(variant: Decode) -> None:
        decode = _Decoding(network, variant, params, mesh)
        program, known = bench.compiled(
            decode.lowered(weights), variant.options, decode.settings.steps
        )

        def run(limit: int) -> tuple[float, Any]:
            return decode.seconds(program, weights, limit)

        run(8)
        short, long = (min(run(limit)[0] for _ in range(2)) for limit in (SHORT, LONG))
        step = (long - short) / (LONG - SHORT)
        mean = PROMPT + (SHORT + LONG) / 2
        floor = (read + token * variant.slots * mean) / bench.best.bytes_per_second
        bench.say(
            what=f"decode {name}",
            title=variant.title,
            milliseconds=1e3 * step,
            of_roofline=floor / step,
            mean_logprob=float(run(LONG)[1].logprobs[:, :SHORT].mean()),
            **known,
        )

    bench.each(f"decode {name}", variants, measure)


class _Decoding:
    """The arguments of the decode loop for one variant."""

    def __init__(self, network: DecoderConfig, variant: Decode, params: Any, mesh: Mesh) -> None:
        self.network, self.mesh, self.slots = network, mesh, variant.slots
        self.settings = engine.RolloutProgram(
            1, LONG, (), 0, variant.sampler, variant.slots, move_to_fewer=False
        )
        self.prompts = list(np.full((variant.slots, PROMPT), 5, np.int32))
        packed = self._packed(LONG)
        rows = devices.put(packed.rows, mesh, "batch")
        cache = jax.eval_shape(
            lambda p, *r: prefill.prefill(network, p, packed.size, *r), params, *rows
        )
        self.cache = random_like(sharding.with_shardings(cache, mesh))

    def _packed(self, limit: int) -> Any:
        limits = np.full(self.slots, limit)
        return make_queue(self.prompts, np.arange(self.slots), limits, 1)

    def _arguments(self, limit: int) -> tuple[Any, ...]:
        queue = devices.put(self._packed(limit).queue, self.mesh, "batch")
        start = engine.start(self.network, self.settings, self.slots, COLUMNS, self.slots)
        return queue, jax.random.key(0), jax.block_until_ready(start)

    def lowered(self, weights: Any) -> Any:
        given = (self.network, self.settings, COLUMNS, 0, weights, self.cache)
        return engine.decode.trace(*given, *self._arguments(LONG)).lower()

    def seconds(self, program: Any, weights: Any, limit: int) -> tuple[float, Any]:
        """Returns the seconds of a rollout of so many tokens, and its results."""
        given = self._arguments(limit)
        return _timed(lambda: program(weights, self.cache, *given)[0])


def measure_update(
    bench: Bench, name: str, layers: int, shape: Shape, variants: list[Updating]
) -> None:
    """Milliseconds of a SeqKD update of full rows, and its share of a large product."""
    _, count, length = shape

    def measure(variant: Updating) -> None:
        computing = {field: getattr(variant, field) for field in ("remat", "unroll", "matmul")}
        network = bench.network(name, **computing)
        network = dataclasses.replace(network, layers=layers or network.layers)
        ids = np.random.default_rng(0).integers(0, network.vocabulary, (count, length), np.int32)
        packed = packing.pack(
            [row[:1] for row in ids],
            [[row[1:]] for row in ids],
            row_tokens=length,
            shards=1,
            known={shape},
        )
        rows = packing.place(packed, bench.mesh)
        program = state.make_program(_config(variant, length), "seqkd", network, network)
        program = dataclasses.replace(program, has_discriminator=False, has_reference=False)
        start = state.abstract(program, bench.mesh)
        training = random_like(start._replace(key=None))._replace(key=jax.random.key(0))
        moments = jax.tree.map(jnp.zeros_like, training.generator_optimizer)
        training = training._replace(generator_optimizer=moments)
        lowered = steps.seqkd_step.trace(program, training, rows).lower()
        step, known = bench.compiled(lowered, {})
        training, found = step(training, rows)
        taken = []
        for _ in range(8):
            seconds, (training, found) = _timed(functools.partial(step, training, rows))
            taken.append(seconds)
        flops = costs.training_flops(network, costs.packed_work(network, packed))
        seconds = statistics.median(taken)
        bench.say(
            what=f"update {name}",
            title=variant.title,
            milliseconds=1e3 * seconds,
            of_a_product=flops / seconds / bench.best.flops_per_second,
            loss=float(found["generator/loss"]),
            temporary_gigabytes=step.memory_analysis().temp_size_in_bytes / 1e9,
            **known,
        )

    bench.each(f"update {name}", variants, measure)


def _config(variant: Updating, length: int) -> Config:
    return Config(
        stage="seqkd",
        student=sections.Student(path="random-tiny"),
        data=sections.Data(max_prompt_tokens=1),
        rollout=sections.Rollout(max_new_tokens=length),
        batch=sections.Batch(vocabulary_chunk=variant.chunk),
    )


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - began, result


def main() -> None:
    """Runs all measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="directory for gpu.jsonl")
    parser.add_argument("--small", action="store_true", help="networks of two layers")
    parser.add_argument("--seconds", type=float, default=540, help="start nothing after these")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.out, given.small, given.seconds)
    length = 64 if given.small else 1024
    with jax.set_mesh(bench.mesh):
        measure_decode(bench, "0.5b", DECODES[:2] if given.small else DECODES)
        measure_update(bench, "0.5b", 0, (1, 8, length), UPDATES)
        measure_decode(bench, "7b", DECODES[1:2] if given.small else DECODES[1:4])
        measure_update(bench, "7b", 0 if given.small else 4, (1, 2, 3 * length), WIDE)
    bench.say(what="done")


if __name__ == "__main__":
    main()
