"""Reading networks back: from a Hugging Face directory, a run directory, or one of its steps."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.distributed import processes
from gad_jax.models import adapters, decoder, source, weights
from gad_jax.models.config import DecoderConfig
from gad_jax.settings import config as settings
from gad_jax.settings import options, template_arguments
from gad_jax.training import architectures, bases, origins, selection, state
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.types import Params


class Adapter(NamedTuple):
    """What was trained of a network with adapters: the adapters, and a score head."""

    network: DecoderConfig
    trained: Params


class Made(NamedTuple):
    """How a run's network came about: the settings, with models for the runs that it began from
    (`origins.effective`), and `meta`, which the run stored with the step."""

    config: settings.Config
    step: int
    meta: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with the directory that its tokenizer came from.

    `template` is the prompt wrapper that it was trained with, `arguments` are those of its chat
    template, and `close_thoughts` is whether its prompts close a thought that they open; `origin`
    says where it is from. `made` says more of a run's network: the settings, and the step that it
    was taken at. Adapters are merged into `params`; `adapter` has them apart.
    """

    config: DecoderConfig
    params: Params
    tokenizer: Path
    template: Any
    origin: str
    made: Made | None = None
    arguments: str = ""
    close_thoughts: bool = False
    adapter: Adapter | None = None

    def load_chat(self, template: Any = "auto", arguments: str = "") -> Chat:
        """Returns the chat that the network was trained with, except for what is given.

        `template` and `arguments` are settings of commands; `{}` stands for no arguments. Raises
        UserError for a tokenizer or template that does not fit.
        """
        wrapper = (self.template or "none") if template == "auto" else template
        given = template_arguments.parse(arguments or self.arguments)
        close = self.close_thoughts and not arguments
        chat = Chat.load(self.tokenizer, wrapper, given, close)
        chat.check_vocabulary(self.config.vocabulary, str(self.tokenizer))
        return chat


def load_student(name: str, mesh: Mesh) -> Network:
    """Returns the student called `name`: a model as in `--student.path`, a run, or one of its
    steps (`selection.WAYS`). Raises UserError for a name that is none of these."""
    if selection.means_run(name):
        return load_from_run(name, "generator", mesh)
    directory = source.resolve(name)
    config, params = weights.load(directory, mesh)
    if config.head != "vocabulary":
        raise UserError(f"{name} is a sequence classifier; name a causal language model")
    return Network(_computing(config), params, directory, None, name)


def settings_of(run: Path) -> settings.Config:
    """Returns the settings of a run, with models for the runs that it began from. Raises UserError
    for a directory that is no run's."""
    if not selection.is_run(run):
        raise UserError(
            f"{run} is not a run directory: it has no config.yaml; name a --run_dir of train"
        )
    return origins.effective(options.load(settings.Config, run / "config.yaml"), run)


def load_from_run(name: str | Path, part: str, mesh: Mesh) -> Network:
    """Returns the generator or the discriminator of a run's newest intact checkpoint, or of the
    one that `name` ends in. Raises UserError when the run has none."""
    named = selection.parse(name)
    run = named.run
    config = settings_of(run)
    step = processes.from_first(lambda: selection.step(named))
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what read_only implies
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    generator, discriminator = architectures.configs(config)

    def expected(meta: dict[str, Any]) -> dict[str, Any]:
        program = state.make_program(config, meta["stage"], generator, discriminator)
        whole = state.abstract(program, mesh)
        found = getattr(whole, part)
        if found is None:
            raise UserError(f"{run}: stage {meta['stage']!r} has no {part}")
        if network.lora is not None:
            identities = bases.identities(config, (generator, discriminator))
            bases.check(meta.get("bases", {}), identities, str(run))
        return {part: found}

    network = generator if part == "generator" else discriminator
    restored = checkpoints.restore(expected, step, subset=True)
    best = ", the best" if named.which == "best" else ""
    origin = f"{run}, step {restored.step} ({restored.meta['stage']}){best}"
    params, adapter = restored.state[part], None
    network, params = decoder.with_mean_head(network, params)
    if network.lora is not None:
        adapter = Adapter(network, params)
        base = bases.load_one(config, network, mesh)
        params = adapters.merge(network, adapters.join(base, params))
    return Network(
        network.merged.unrounded,
        params,
        source.resolve(config.student.path),
        config.data.template,
        origin,
        Made(config, restored.step, restored.meta),
        config.data.chat_template_kwargs,
        config.data.thoughts == "drop",
        adapter,
    )


def _computing(config: DecoderConfig) -> DecoderConfig:
    half = jax.default_backend() != "cpu"
    return dataclasses.replace(config, compute_dtype="bfloat16" if half else "float32")
