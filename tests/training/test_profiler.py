"""The page of a profile: by hand, and that of a real run."""

import gzip
import json
from pathlib import Path

import jax
import pytest

from gad_jax.base.errors import UserError
from gad_jax.models import costs
from gad_jax.models.config import DecoderConfig, alike
from gad_jax.models.costs import Work
from gad_jax.settings.operation import Profile
from gad_jax.training import profiler
from tests.training.runs import EIGHT_ROWS

pytest_plugins = ["tests.run_fixtures"]

NETWORK = DecoderConfig(
    family="llama", vocabulary=10, width=4, mlp_width=8, layers=2, heads=2, kv_heads=1,
    head_width=2, kinds=alike(1e4), norm_epsilon=1e-6, max_positions=64, tied=True,
)  # fmt: skip


def test_utilisation_by_hand() -> None:
    steps = [{"seconds/update": 3.0, "seconds/compile": 1.0, "seconds/step": 4.0}] * 2
    page = profiler.summary(steps, {"generator": 2e12}, {"dot.1": (1.5, "generator")}, 2e12)
    # 1 TFLOP per step in the 2 seconds that are no compiling, of 2 TFLOP/s
    assert "(MFU): 25.0% of 2 TFLOP/s" in page
    assert "     1.500  dot.1  generator" in page


def test_operations_of_each_update() -> None:
    work = [Work(10, 2 * 55, 8), Work(6, 2 * 21, 5)]
    # by hand: 2 layers of 4·(2·2 + 2·1)·2 = 48 and 3·4·8 = 96 weights
    assert costs.forward_flops(NETWORK, work[1]) == 2 * 288 * 6 + 4 * 4 * 2 * 21 + 2 * 4 * 10 * 5
    both = (NETWORK, NETWORK)
    measured = dict.fromkeys(("discriminator/loss", "generator/loss", "kl/reference"), 0.0)
    rows = [(each, each) for each in work]
    found = profiler.update_flops(both, rows, measured)
    assert list(found) == ["discriminator", "generator", "reference"]
    assert found["generator"] == 3 * found["reference"]
    assert list(profiler.update_flops(both, rows[1:], {"generator/loss": 1.0})) == ["generator"]


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("jit(gad_step)/transpose(jvp(discriminator))/while/body/layer/dot", "discriminator"),
        ("jit(gad_step)/jvp(generator)/reference/while/dot", "reference"),
        ("jit(gad_step)/mul", ""),
    ],
)
def test_the_part_of_a_step_that_an_operation_belongs_to(path: str, scope: str) -> None:
    assert profiler._scope(path) == scope


@pytest.mark.parametrize("text", ["3", "5:3", "0:2", "a:b", "1:2:3"])
def test_steps_that_are_no_window_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be FIRST:LAST"):
        Profile(steps=text)


def test_steps_after_the_last_one_are_refused() -> None:
    profiler.check((9, 12), steps=9)
    profiler.check((0, 0), steps=9)
    with pytest.raises(UserError, match=r"steps=10:12 begins after the run's last step, 9"):
        profiler.check((10, 12), steps=9)


def test_a_resumed_run_traces_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traced: list[str] = []

    def start(directory: str, **_: object) -> None:
        Path(directory).mkdir()
        traced.append("start")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: traced.append("stop"))
    monkeypatch.setattr(profiler, "operations", lambda _: {})

    def run(*steps: int) -> list[str]:
        traced.clear()
        made = profiler.Profiler((3, 5), str(tmp_path), (NETWORK, NETWORK))
        for step in steps:
            made.begin(step)
            traced.append(str(step))
            made.end(step, {"seconds/step": 1.0, "seconds/update": 1.0})
        return traced

    page = tmp_path / "profile" / "summary.txt"
    assert run(6, 7) == ["6", "7"]
    [said] = capsys.readouterr().out.splitlines()
    assert said.startswith("warning: nothing is traced: the run resumes after step 5, and --prof")
    assert run(4, 5, 6) == ["start", "4", "5", "stop", "6"]
    assert run(4, 5, 6) == ["4", "5", "6"]  # the page stays
    assert run(6, 7) == ["6", "7"]
    page.unlink()
    assert run(2, 3, 4, 5, 6) == ["2", "start", "3", "4", "5", "stop", "6"]
    assert run(3, 4, 5) == ["start", "3", "4", "5", "stop"]  # all of them once more
    assert "nothing is traced" not in capsys.readouterr().out


def test_a_run_that_is_profiled(command, tmp_path: Path) -> None:
    flags = ("--stage=gad", "--gad.steps=2", "--data.heldout=", "--export=false")
    run = ("--config=tiny", f"--run_dir={tmp_path / 'run'}", "--profile.steps=2:2")
    # Rows of one shape: a trace of a step that compiles takes seconds to read.
    done = command("train", *run, *flags, f"--data.train={EIGHT_ROWS}")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert page in done.stdout
    assert "1 steps, mean of each" in page
    assert "discriminator" in page
    assert page.split("longest)")[1].strip(), "no operation was found in the trace"
    assert list(tmp_path.rglob("*.xplane.pb"))
    [trace] = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert any("gad_step" in name for name in names)
    assert not any(name.startswith("$") for name in names), "a call of Python is traced"
