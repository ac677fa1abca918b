"""Networks that a run takes from another: `--student.path=RUN@best`, `--discriminator.path=RUN`.

Which step that was is pinned in origins.json of the run that takes them, when it is first started.
So it resumes from the same weights, whatever becomes of the other run. Everything else of a network
(its config, its tokenizer) is that of the model which the other run started from: `effective`
returns the settings with that model's name.
"""

import dataclasses
import json
from pathlib import Path
from typing import Literal, NamedTuple

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.data.tokenizer import load_tokenizer
from gad_jax.models import source
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import architectures, bases, selection, state

FILE = "origins.json"
FLAGS = {"student": "--student.path", "discriminator": "--discriminator.path"}


class Origin(NamedTuple):
    """A network of another run: `name` as it was given, the step that it names, and the `model`
    that the network goes back to. `template` is the other run's prompt wrapper."""

    name: str
    run: str
    step: int
    stage: str
    part: Literal["generator", "discriminator"]
    model: str
    template: str

    @property
    def path(self) -> str:
        """The checkpoint, as `loading.load_from_run` reads it."""
        return f"{self.run}/checkpoints/{self.step}"

    @property
    def place(self) -> str:
        """What is said of it."""
        return f"{self.run}, step {self.step} ({self.stage})"


Origins = dict[str, Origin]
"""'student' and 'discriminator' → where each comes from, where that is a run."""


def find(config: Config, run: Path) -> Origins:
    """Returns where the networks of a run come from that has no checkpoint yet.

    Raises UserError, led by the flag, for a run that does not have such a network, and for networks
    that do not fit each other.
    """
    names = {"student": config.student.path, "discriminator": config.discriminator.path}
    found: Origins = {}
    for part, name in names.items():
        named = selection.parse(name)
        if name and selection.is_run(named.run):
            try:
                found[part] = _find(part, name, run)
            except UserError as error:
                raise UserError(f"{FLAGS[part]}={name}: {error}") from error
        elif name and selection.means_run(name):
            raise UserError(
                f"{FLAGS[part]}={name}: {named.run} is not a run directory: it has no config.yaml; "
                "name a --run_dir of train"
            )
    if "discriminator" in found:
        _check_tokenizers(replaced(config, found), found["discriminator"])
    return found


def pin(config: Config, run: Path) -> bool:
    """Stores what `find` returns; returns whether something else was stored before."""
    path = run / FILE
    before = path.read_bytes() if path.exists() else b""
    stored = {part: origin._asdict() for part, origin in find(config, run).items()}
    after = (json.dumps(stored, indent=1) + "\n").encode() if stored else b""
    if after:
        files.write_atomic(path, after)
    else:
        path.unlink(missing_ok=True)
    return before != after


def read(config: Config, run: Path) -> Origins:
    """Returns what `pin` stored for a run; {} where its networks are models.

    Raises UserError where the file is missing or damaged, but needed.
    """
    names = {"student": config.student.path, "discriminator": config.discriminator.path}
    try:
        text = (run / FILE).read_text(encoding="utf-8")
        found = {part: Origin(**fields) for part, fields in json.loads(text).items()}
        if all(names[part] == origin.name for part, origin in found.items()):
            needed = [part for part, name in names.items() if name and selection.names_run(name)]
            if set(needed) <= found.keys():
                return found
        reason = "is damaged: it names other networks than config.yaml"
    except FileNotFoundError:
        if not any(name and selection.names_run(name) for name in names.values()):
            return {}
        reason = "is missing"
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        reason = "is damaged"
    raise UserError(
        f"{run / FILE} {reason}, and says which checkpoint of another run this one began with; "
        "copy the file back, or choose another --run_dir"
    )


def effective(config: Config, run: Path) -> Config:
    """Returns a run's settings with the models that its networks go back to."""
    return replaced(config, read(config, run))


def model_of(name: str) -> str:
    """Returns the model that a run's student goes back to, or the name where it is no run's."""
    named = selection.parse(name)
    if not selection.is_run(named.run):
        return name
    return effective(options.load(Config, named.run / "config.yaml"), named.run).student.path


def discriminator(origins: Origins, config: Config) -> Origin | None:
    """Returns where the discriminator's weights come from: without a name, the student's origin.

    Raises UserError where a run's discriminator, which has a head, is to start several."""
    heads = config.discriminator.heads
    if config.discriminator.path:
        origin = origins.get("discriminator")
        if heads > 1 and origin is not None:
            raise UserError(
                f"--discriminator.path={origin.name} is a discriminator with its score head, and "
                f"--discriminator.heads={heads} start as new ones; name a causal language model, "
                "or leave out --discriminator.heads"
            )
        return origin
    return origins.get("student")


def sentences(origins: Origins, config: Config) -> list[str]:
    """Returns what is taken from other runs."""
    said = []
    if student := origins.get("student"):
        said.append(f"student: the generator of {student.place}")
    if judge := origins.get("discriminator"):
        said.append(f"discriminator: that of {judge.place}, with its score head")
    elif student and not config.discriminator.path:
        said.append(
            "discriminator: the same weights with a new score head; "
            f"--discriminator.path={student.name} takes that run's discriminator"
        )
    for part, origin in origins.items():
        if origin.template != config.data.template:
            said.append(
                f"warning: {FLAGS[part]}={origin.name} was trained with --data.template="
                f"{origin.template}, and this run has {config.data.template}"
            )
    return said


def public(run: Path, part: str) -> str:
    """Returns where a network of the run comes from, without the other run's place; '' for a
    model."""
    try:
        stored = json.loads((run / FILE).read_text(encoding="utf-8"))
        origin = Origin(**stored[part])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    return f"`{Path(origin.run).name}`, step {origin.step} ({origin.stage})"


def _find(part: str, name: str, own: Path) -> Origin:
    named = selection.parse(name)
    if named.run.resolve() == own.resolve():
        raise UserError("that is this run itself; choose another --run_dir, or name another run")
    config = effective(options.load(Config, named.run / "config.yaml"), named.run)
    records = selection.read_records(named.checkpoints)
    if not records:
        raise UserError("the run has no complete checkpoint; let it save one, or name another run")
    chosen = selection.step(named)
    step = max(records) if chosen is None else chosen
    if step not in records:
        raise UserError(f"the run has no checkpoint of step {step}; it has {sorted(records)}")
    stage = records[step]["meta"]["stage"]
    if part == "student":
        model = config.student.path
    else:
        networks = architectures.configs(config)
        if not state.make_program(config, stage, *networks).has_discriminator:
            raise UserError(
                f"step {step} ({stage}) has no discriminator; name a run of the stages warmup, "
                "offpolicy or gad"
            )
        model = bases.discriminator_path(config)
    taken: Literal["generator", "discriminator"] = (
        "generator" if part == "student" else "discriminator"
    )
    template = config.data.template
    return Origin(name, str(named.run.resolve()), step, stage, taken, model, template)


def _check_tokenizers(config: Config, judge: Origin) -> None:
    """Raises UserError where the discriminator of another run has read other token ids."""
    run = Path(judge.run)
    theirs = effective(options.load(Config, run / "config.yaml"), run).student.path
    directories = [source.resolve(name) for name in (config.student.path, theirs)]
    if directories[0] == directories[1]:
        return
    ours, other = (load_tokenizer(directory).get_vocab() for directory in directories)
    if ours != other:
        raise UserError(
            f"--discriminator.path={judge.name}: that run has the tokenizer of {theirs} "
            f"({len(other)} tokens), and the student that of {config.student.path} ({len(ours)}); "
            "both must share a tokenizer"
        )


def replaced(config: Config, origins: Origins) -> Config:
    """Returns the settings with models in place of runs."""
    sections = {
        part: dataclasses.replace(getattr(config, part), path=origin.model)
        for part, origin in origins.items()
    }
    return dataclasses.replace(config, **sections) if sections else config
