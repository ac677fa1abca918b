"""What a finished run exports."""

import json
import shutil

import jax
from safetensors.numpy import load_file

from gad_jax.distributed.mesh import make_mesh
from gad_jax.training import finishing, loading
from gad_jax.training.checkpoint import Checkpoints
from tests.training.runs import settings, start


def test_the_export_is_the_best_checkpoint(tmp_path, capsys):
    config = settings(tmp_path, "--checkpoint.every=1", "--evaluation.every=1")
    start(config)
    assert "exported: step 4, the last and the best of its stage by" in capsys.readouterr().out
    last = load_file(tmp_path / "export" / "student" / "model.safetensors")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.rescore(3, 0.5)
    checkpoints.close()

    start(config)
    printed = capsys.readouterr().out
    assert "exported: step 3 (gad), the best of its stage by rouge_l (0.5000) with" in printed
    assert "the last is step 4, which --checkpoint.export=last takes" in printed
    best = load_file(tmp_path / "export" / "student" / "model.safetensors")
    assert any((last[name] != best[name]).any() for name in last)
    assert "| stage, step | gad, 3 |" in (tmp_path / "export" / "student" / "README.md").read_text()
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        named = loading.load_student(f"{tmp_path}@best", mesh)
        assert named.origin == f"{tmp_path}, step 3 (gad), the best"
        assert loading.load_student(f"{tmp_path}@last", mesh).origin.endswith("step 4 (gad)")
    assert json.loads((tmp_path / "status.json").read_text())["best"]["step"] == 3

    start(settings(tmp_path, "--checkpoint.every=1", "--checkpoint.export=last"))
    assert f"step 4, the last; {tmp_path}@best names the best" in capsys.readouterr().out
    again = load_file(tmp_path / "export" / "student" / "model.safetensors")
    assert all((last[name] == again[name]).all() for name in last)

    shutil.rmtree(tmp_path / "checkpoints" / "3" / "state")
    start(config)
    assert "warning: the last step, 4, is exported in its place: " in capsys.readouterr().out
    assert "| stage, step | gad, 4 |" in (tmp_path / "export" / "student" / "README.md").read_text()


def test_a_report_is_no_reason_for_a_run_to_fail(tmp_path, capsys):
    finishing.write_report(tmp_path, taken=True)  # no step was logged
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "gad", "entropy": 2.0}\n')
    finishing.write_report(tmp_path, taken=False)
    path = tmp_path / "report.html"
    assert capsys.readouterr().out == f"the report is {path}\n"
    path.write_text("with a judge's table")
    finishing.write_report(tmp_path, taken=False)
    assert path.read_text() == "with a judge's table"
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "before.json").write_text("damaged")
    finishing.write_report(tmp_path, taken=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"the report is {path}"
    assert second.startswith(f"warning: {path} was not written (UserError: ")
    assert second.endswith(f"; see python -m gad_jax.evaluate {tmp_path}")
