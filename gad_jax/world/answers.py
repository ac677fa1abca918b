"""The answers of a seed's students, and what the oracle measures of them."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gad_jax.data import sources
from gad_jax.data.chat import Chat
from gad_jax.distributed.mesh import make_mesh
from gad_jax.metrics.scoring import Scorer
from gad_jax.rollout.answering import Responder
from gad_jax.settings.decoding import Decoding
from gad_jax.training import loading
from gad_jax.world import knowledge, oracle

SAMPLES = 4
"""Answers to each held-out instruction at temperature 1, in addition to the greedy one."""

MAX_NEW_TOKENS = 32
SCORED_AT_ONCE = 64


def measure(run: Path, heldout: Path, seed: int) -> dict[str, Any]:
    """Returns the oracle's measures of a run's student: greedy, sampled, and during training."""
    rows = sources.read(str(heldout)).rows
    asked = [row.messages[-1]["content"] for row in rows]
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(str(run / "export" / "student"), mesh)
        found = {}
        for name, temperature, samples in (("greedy", 0.0, 1), ("sampled", 1.0, SAMPLES)):
            groups = knowledge.sample(_responder(network, mesh, seed, temperature, samples), rows)
            texts = [[answer.text for answer in group] for group in groups]
            lengths = [answer.tokens for group in groups for answer in group]
            found[name] = oracle.measure(asked, texts) | {"tokens": sum(lengths) / len(lengths)}
            if name == "greedy":
                teacher = [row.responses[0] for row in rows]
                found[name] |= oracle.mean_overlap(teacher, [text for (text,) in texts])
    return found | {"curve": oracle.curve(run)}


def measure_knowledge(run: Path, judge: Path | None, heldout: Path, seed: int) -> dict[str, Any]:
    """Returns `knowledge.measure` of a run's student; `judge` is the run whose D chooses."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(str(run / "export" / "student"), mesh)
        rows = sources.read(str(heldout)).rows
        scorer = _scorer(judge, mesh) if judge else None
        return knowledge.measure(rows, partial(_responder, network, mesh, seed), scorer)


def _responder(
    network: loading.Network, mesh: Mesh, seed: int, temperature: float, samples: int
) -> Responder:
    how = Decoding(
        temperature=temperature, samples=samples, max_new_tokens=MAX_NEW_TOKENS, seed=seed
    )
    return Responder(network.config, network.params, _chat(network), mesh, how)


def _scorer(run: Path, mesh: Mesh) -> Scorer:
    network = loading.load_from_run(run, "discriminator", mesh)
    return Scorer(network.config, network.params, _chat(network), mesh, SCORED_AT_ONCE)


def _chat(network: loading.Network) -> Chat:
    return Chat.load(network.tokenizer, "none")
