"""A run that a tracker follows: four steps, a kill, and a resume from the second step to the sixth.

    python session.py TRACKER RUN_DIR

It is a process of its own: trackers read their variables when they are imported.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SECRET = "open-sesame-9"
"""Is in the environment, and in a setting."""


def run(tracker: str, run_dir: Path, variables: dict[str, str]) -> str:
    """Runs this file; returns what it printed. No server can be reached."""
    environment = os.environ | variables
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(run_dir.parent), "MY_API_KEY": SECRET}
    done = subprocess.run(
        [sys.executable, __file__, tracker, str(run_dir)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def main(tracker: str, run_dir: str) -> None:
    from gad_jax.settings import options
    from gad_jax.settings.config import Config
    from gad_jax.training.tracker import Tracker
    from gad_jax.training.trackers import opening

    flags = [f"--run_dir={run_dir}", f"--tracking.to={tracker}", "--tracking.tags=first,size=7B"]
    flags += [f"--data.train=https://me:{SECRET}@127.0.0.1/teacher.jsonl"]
    config = options.read(Config, flags, program="", description="")
    opening.require(config.tracking)
    for start, end in ((0, 4), (2, 6)):
        writer = Tracker(run_dir, trackers=opening.trackers(config))
        writer.start(start, 6)
        for step in range(start + 1, end + 1):
            writer.log(step, "gad", {"generator/loss": step / 4, "kl/reference": float("nan")})
        writer.text(end, f"step {end}", "**student**\n\n    <b>Because</b>\n")
        writer.close("finished" if end == 6 else "stopped")


if __name__ == "__main__":
    main(*sys.argv[1:])
