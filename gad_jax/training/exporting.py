"""A run's network as a Hugging Face directory, with what it was made from."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from gad_jax import __version__
from gad_jax.data.chat import Chat
from gad_jax.distributed import processes
from gad_jax.models import peft, provenance, source, writing
from gad_jax.models.carried import Carried
from gad_jax.models.config import DecoderConfig
from gad_jax.settings import fields
from gad_jax.settings.config import CAN_CHANGE, Config
from gad_jax.training import bases, card, digest
from gad_jax.training.loading import Adapter, Made
from gad_jax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """A network of a run with all that its directory says; `run` is the run directory.

    Adapters are merged into `params`; `adapter` has them apart.
    """

    network: DecoderConfig
    params: Params
    chat: Chat
    made: Made
    run: Path
    adapter: Adapter | None = None

    @property
    def part(self) -> str:
        """The network's name in exports."""
        return "student" if self.network.head == "vocabulary" else "discriminator"

    @functools.cached_property
    def fingerprint(self) -> str:
        """A sha256 of the weights and of what they were made with.

        The dtype of the directory is left out: it is the same student. All processes ask for it.
        """
        made = self.made
        settings = {
            leaf.path: fields.show(leaf.value)
            for leaf in fields.leaves(Config, made.config)
            if not leaf.path.startswith(CAN_CHANGE)
        }
        content = {
            "part": self.part,
            "step": made.step,
            "stage": made.meta["stage"],
            "data": made.meta["data"],
            "tokenizer": self.chat.fingerprint,
            "settings": settings,
            "weights": digest.digests(self.adapter.trained if self.adapter else self.params),
        }
        if self.adapter:
            content["bases"] = made.meta["bases"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write(directory: Path, export: Export) -> None:
    """Writes the network with the tokenizer that it was trained with. All processes call it."""
    made, chat = export.made, export.chat
    record = {"gad_jax": __version__, "made_from": export.fingerprint}
    path = bases.path_of(made.config, export.network)
    texts: dict[str, str] = {}
    model = source.resolve(path)
    if processes.is_first():
        subject = _subject(export, model, adapter=False)
        texts = {"README.md": card.write(subject)}
        texts[provenance.RECORD] = json.dumps(record, indent=2) + "\n"
    stored = chat.stored_template  # with the run's arguments, and its thought closed
    carried = Carried(
        directory=Path(chat.directory),
        tokenizer=chat.tokenizer,
        end_tokens=chat.end_tokens,
        network=model,
        chat_template=None if stored == chat.jinja.source else stored,
    )
    writing.save(directory, export.network, export.params, carried, texts)


def write_adapter(directory: Path, export: Export) -> bool:
    """Writes the network's adapters for PEFT; all processes call it.

    Returns False for a network without adapters, and where PEFT cannot have them: in families whose
    tensors hold several projections.
    """
    adapter, config = export.adapter, export.made.config
    if adapter is None or not peft.has_names(adapter.network):
        return False
    weights = peft.tensors(adapter.network, adapter.trained)
    if processes.is_first():
        name = bases.path_of(config, adapter.network)
        model = source.resolve(name)
        base = provenance.hub_id(name, model) or name  # as it was given: no path of this machine
        record: dict[str, Any] = {"gad_jax": __version__, "made_from": export.fingerprint}
        record |= {"bases": export.made.meta["bases"]}
        if export.part == "discriminator":
            bias = jax.device_get(adapter.trained["score"]["bias"])
            record["score_bias"] = float(bias[0])
        with writing.replaced(directory) as staging:
            peft.write(staging, adapter.network, weights, base)
            text = json.dumps(record, indent=2) + "\n"
            (staging / provenance.RECORD).write_text(text, encoding="utf-8")
            about = card.write(_subject(export, model, adapter=True))
            (staging / "README.md").write_text(about, encoding="utf-8")
    return True


def _subject(export: Export, model: Path, *, adapter: bool) -> card.Subject:
    """Returns what the card is about; `model` is the directory that the network comes from."""
    made, chat = export.made, export.chat
    return card.Subject(
        part=export.part,
        config=made.config,
        run=export.run,
        model=model,
        step=made.step,
        stage=made.meta["stage"],
        data=made.meta["data"],
        rows=made.meta.get("rows"),  # which runs of 0.1 did not store
        end_token=chat.tokenizer.convert_ids_to_tokens(chat.end_token),
        family=export.network.family,
        adapter=adapter,
    )


def is_current(directory: Path, export: Export) -> bool:
    """Returns whether the directory was made from this very network. All processes call it."""
    expected = export.fingerprint

    def compare() -> bool:
        try:
            stored = json.loads((directory / provenance.RECORD).read_text(encoding="utf-8"))
            return stored["made_from"] == expected
        except (OSError, ValueError, KeyError, TypeError):
            return False

    return processes.from_first(compare)
