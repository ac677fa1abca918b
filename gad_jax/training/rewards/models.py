"""A reward model as a term: a frozen network with a score head, on the samples as D sees them."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32

from gad_jax.base.errors import UserError
from gad_jax.core import forward
from gad_jax.core.discriminator import in_order
from gad_jax.data import same_tokenizer
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices, processes, sharding
from gad_jax.models import adapters, checksums, decoder, source, weights
from gad_jax.models.config import DecoderConfig
from gad_jax.settings.config import Config
from gad_jax.settings.reward import MODEL
from gad_jax.training import architectures, loading, selection
from gad_jax.types import PackedRows, Params

Networks = Mapping[str, DecoderConfig]
"""The reward models of a run, by the names of their terms."""

NONE: Networks = {}


def networks(
    config: Config, dtype: str, read: Callable[[str], DecoderConfig] = architectures.read
) -> Networks:
    """Returns the reward models of a run, to be computed in `dtype`. No weights are read.

    `read` is as for `architectures.configs`. Raises UserError for what is no reward model.
    """
    found = {}
    for term in config.reward.terms:
        if term.kind == "model":
            try:
                network = _network(term.source.removeprefix(MODEL), read)
            except UserError as error:
                raise UserError(f"--reward.extra={term.source}: {error}") from error
            found[term.name] = _computing(network, dtype)
    return found


def _network(path: str, read: Callable[[str], DecoderConfig]) -> DecoderConfig:
    if selection.means_run(path):
        run = selection.parse(path).run
        judge = architectures.configs(loading.settings_of(run), read)[1]
        return dataclasses.replace(judge.merged, score_heads=1)  # the mean of its heads
    network = read(path)
    if network.head != "score":
        raise UserError(
            f"{path} is a causal language model; name a sequence classifier with one label, "
            "such as the export/discriminator of a run"
        )
    return network


def _computing(network: DecoderConfig, dtype: str) -> DecoderConfig:
    return dataclasses.replace(network, compute_dtype=dtype, remat="none")


def abstract(network: DecoderConfig, mesh: Mesh) -> Params:
    """Returns a reward model's weights as shapes with shardings: matrices in the compute dtype."""

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        vector = adapters.is_vector(sharding.path_name(path))
        kind = leaf.dtype if vector else jnp.dtype(network.compute_dtype)
        return jax.ShapeDtypeStruct(leaf.shape, kind)

    shapes = decoder.selected(decoder.abstract(network), _is_used)
    return sharding.placed(jax.tree_util.tree_map_with_path(one, shapes), mesh)


class Model:
    """A reward model, loaded: `identity` tells its weights from any other's.

    `name` is model:PATH as it was given: a directory with a sequence classifier of one label, or
    the discriminator of a run. `chat` is the student's, and `dtype` what matmuls are computed in.
    Raises UserError for what is no such network, or reads other token ids than the student.
    """

    def __init__(self, name: str, config: Config, dtype: str, chat: Chat, mesh: Mesh) -> None:
        path = name.removeprefix(MODEL)
        try:
            self.config, self.params, self.identity = _load(path, config, dtype, chat, mesh)
        except UserError as error:
            raise UserError(f"--reward.extra={name}: {error}") from error

    def __call__(self, rows: PackedRows) -> Float32[np.ndarray, "B N"]:
        """Returns the scores of the responses, prompt by prompt; all processes call it."""
        return devices.fetch(scores(self.config, self.params, rows))


def _load(
    path: str, config: Config, dtype: str, chat: Chat, mesh: Mesh
) -> tuple[DecoderConfig, Params, str]:
    if selection.means_run(path):
        taken = loading.load_from_run(path, "discriminator", mesh)
        network, identity = taken.config, taken.origin
        _check(path, taken.tokenizer, network, config, chat)
        narrow = partial(_narrow, jnp.dtype(dtype))
        params = jax.tree_util.tree_map_with_path(narrow, taken.params)
    else:
        network = _network(path, architectures.read)
        directory = source.resolve(path)
        _check(path, directory, network, config, chat)
        identity = processes.from_first(partial(checksums.identity, directory))
        params = weights.load(directory, mesh, dtype, _is_used, adapters.is_vector)[1]
    return _computing(network, dtype), params, identity


def _narrow(kind: jnp.dtype, path: Any, leaf: Array) -> Array:
    return leaf if adapters.is_vector(sharding.path_name(path)) else leaf.astype(kind)


def _is_used(name: str) -> bool:
    return not name.startswith("head/")


def _check(path: str, directory: Path, network: DecoderConfig, config: Config, chat: Chat) -> None:
    if found := same_tokenizer.difference(chat, directory):
        raise UserError(
            f"it has another tokenizer than the student: {found}; name a model of the student's "
            "family, or call it from a function of your own"
        )
    chat.check_vocabulary(network.vocabulary, path)
    if config.longest > network.max_positions:
        raise UserError(
            f"data.max_prompt_tokens + rollout.max_new_tokens = {config.longest} is more than its "
            f"{network.max_positions} positions; lower one of them"
        )


@partial(jax.jit, static_argnames="config")
def scores(config: DecoderConfig, params: Params, rows: PackedRows) -> Float[Array, "B N"]:
    """Returns the scores in the order of the prompts; of several heads, their mean."""
    with jax.named_scope("reward model"):
        found = jax.lax.map(partial(forward.response_scores, config, params), rows)
    found = in_order(found, rows)
    return found if found.ndim == 2 else jnp.mean(found, axis=-1)
