"""The shape of the package: mirrored tests, short files and functions, few and acyclic layers."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gad_jax"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

UNMIRRORED = {
    "core.program": "a record; core/builders.py makes one for every step that is tested",
    "data.encoding": "data/test_chat.py and test_turns.py: all prompts and rows come from it",
    "data.framing": "data/test_turns.py: rows of the forms of public templates",
    "evaluate.human.settings": "declarations; evaluate/human/test_page.py",
    "evaluate.judge.settings": "declarations; evaluate/judge/test_verdicts.py",
    "models.builtin.untrained": "models/test_decoder.py: every network there is an untrained one",
    "models.config": "a record",
    "models.families.gemma3": "declarations; families/test_common.py, test_decoder.py",
    "models.families.granite": "declarations; families/test_common.py, test_decoder.py",
    "models.families.llama": "declarations; families/test_common.py, test_decoder.py",
    "models.families.mistral": "declarations; families/test_common.py, test_decoder.py",
    "models.families.mixtral": "declarations; families/test_common.py, test_decoder.py",
    "models.families.olmo2": "declarations; families/test_common.py, test_decoder.py",
    "models.families.olmo3": "declarations; families/test_common.py, test_decoder.py",
    "models.families.olmoe": "declarations; families/test_common.py, test_decoder.py",
    "models.families.phi3": "declarations; families/test_common.py, test_decoder.py",
    "models.families.qwen2": "declarations; families/test_common.py, test_decoder.py",
    "models.families.qwen3": "declarations; families/test_common.py, test_decoder.py",
    "models.families.qwen3_moe": "declarations; families/test_common.py, test_decoder.py",
    "models.families.smollm3": "declarations; families/test_common.py, test_decoder.py",
    "models.layers": "models/test_decoder.py: a layer computes nothing without its network",
    "models.writing": "models/test_weights.py: what is written is read back",
    "plan.calls": "plan/test_programs.py, which compiles them",
    "plan.traffic": "plan/test_estimate.py: the bytes of a step's parts",
    "rollout.answering": "generate: the command's answers are the Responder's",
    "rollout.ring": "rollout/test_engine.py, which compiles its programs anyway",
    "settings.alarms": "declarations; training/test_health.py",
    "settings.baselines": "training/test_snapshots.py and settings/test_config.py",
    "settings.decoding": "declarations; settings/test_options.py",
    "settings.grpo": "declarations and checks; settings/test_config.py",
    "settings.optimizer": "declarations; core/test_optimizer.py",
    "settings.custom": "declarations; training/test_custom_step.py",
    "settings.operation": "declarations; settings/test_options.py",
    "settings.reward_judge": "declarations; settings/test_reward.py",
    "settings.sections": "declarations; settings/test_config.py",
    "settings.tracking": "declarations; training/trackers/test_opening.py",
    "training.card_use": "training/test_card.py: parts of every card",
    "training.format_1": "training/test_checkpoint.py reads a checkpoint of that format",
    "training.loading": "generate and export load checkpoints with it",
    "training.pushing": "export/test_push.py: `export --push` over HTTP",
    "training.rehearsal": "test_train.py: dry runs of one and two processes",
    "training.restoring": "training/test_checkpoint.py and test_checkpoint_faults.py",
    "training.sampling": "training/test_iteration.py and test_ahead.py: the samples of every step",
    "training.state": "training/test_trainer.py: stages that begin, states that resume",
    "training.step_rows": "training/test_iteration.py: what every step packs",
    "training.trackers.service": "a protocol; training/trackers/test_sending.py has one",
    "types": "pytrees without code; every test makes some",
    "world.methods": "world/test_main.py trains all of them",
    "world.answers": "world/test_seeds.py: every method's answers come from it",
    "world.personas.laboratory": "personas/test_experiment.py: all that is drawn and measured",
    "world.personas.measures": "personas/test_policy.py: KLs against an enumeration",
    "world.personas.teacher": "personas/test_policy.py: its mixture against an enumeration",
    "world.runs": "world/test_seeds.py and personas/test_experiment.py: every run is started by it",
}
"""Modules without a test file of their name, and where they are tested instead."""


def name(path: Path) -> str:
    """Returns a module's dotted name below gad_jax: 'training.trainer'; '' for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_mirrored(path: Path) -> bool:
    """Returns whether a module has a test file in the same place; a command has one for both of its
    modules, `__main__.py` and `command.py`."""
    folder = ROOT / "tests" / path.relative_to(PACKAGE).parent
    stems = ("main", "command") if path.stem in ("__main__", "command") else (path.stem,)
    return any((folder / f"test_{stem}.py").exists() for stem in stems)


def test_every_module_has_a_mirrored_test() -> None:
    missing = {name(path) for path in MODULES if not is_mirrored(path)}
    assert sorted(missing - {*UNMIRRORED}) == [], "add tests/…/test_X.py, or a reason here"
    assert sorted({*UNMIRRORED} - missing) == [], "these have a test file now, or are gone"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 50, f"{node.name} is too long"


def test_the_package_has_few_entries() -> None:
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(entries) <= 24, sorted(entries)


@cache
def imports(path: Path) -> frozenset[str]:
    """Returns the modules of gad_jax that a module imports at its top level."""
    known = {name(other) for other in PACKAGE.rglob("*.py")}
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from gad_jax.core import steps` imports a module, `… import adamw` a name of one.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full.removeprefix("gad_jax.") in known else str(node.module))
    ours = {x.removeprefix("gad_jax.") for x in found if x.startswith("gad_jax.")}
    return frozenset(ours - {name(path)})


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """Returns the longest chain of imports; raises AssertionError when they go in a circle."""

    @cache
    def chain(module: str) -> tuple[str, ...]:
        below = [chain(other) for other in sorted(graph[module])]
        return (module, *max(below, key=len, default=()))

    try:
        return list(max(map(chain, graph), key=len))
    except RecursionError:
        raise AssertionError("modules import each other in a circle") from None


def test_modules_do_not_import_in_a_circle() -> None:
    paths = {name(path): path for path in PACKAGE.rglob("*.py")}
    assert len(longest_chain({module: set(imports(path)) for module, path in paths.items()})) > 1


def test_layers_are_few() -> None:
    """A folder is one node, as is a module at the top level."""
    layers: dict[str, set[str]] = {}
    for path in MODULES:
        layer = name(path).partition(".")[0]
        below = {other.partition(".")[0] for other in imports(path)}
        layers.setdefault(layer, set()).update(below - {layer})
    chain = longest_chain(layers)
    assert 1 < len(chain) <= 8, chain
