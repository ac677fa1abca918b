"""SHA256SUMS next to weights: what is noticed, and that sha256sum makes and reads the same file."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.models import checksums, weights
from gad_jax.models.builtin import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny.write_tiny(tmp_path, num_shards=2)
    checksums.write(tmp_path)
    return tmp_path


def test_a_flipped_bit_is_noticed_and_named(model: Path) -> None:
    weights.load(model)
    path = model / "model-00002-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00002-of-00002.safetensors is not the file that SHA256"):
        weights.load(model)
    (model / checksums.NAME).unlink()
    weights.load(model)  # as nothing tells


def test_sha256sum_writes_and_reads_the_same(model: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--check", "--quiet", checksums.NAME], cwd=model, check=True)
    files = sorted(path.name for path in model.iterdir() if path.name != checksums.NAME)
    assert "tokenizer.json" in files
    done = subprocess.run(["sha256sum", *files], cwd=model, capture_output=True, check=True)
    assert done.stdout == (model / checksums.NAME).read_bytes()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_every_file_that_decides_something_is_checked(model: Path, name: str) -> None:
    path = model / name
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(UserError, match=f"{name} is not the file that SHA256SUMS was made for"):
        weights.load(model)
    path.write_bytes(content)
    weights.load(model)
    path.unlink()
    with pytest.raises(UserError, match=name):
        weights.load(model)


def test_texts_for_people_may_be_left_out_but_not_changed(model: Path) -> None:
    (model / "README.md").write_text("# A model\n")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tools.jinja").write_text("{{ tools }}")
    checksums.write(model)
    (model / "README.md").write_text("# Another\n")
    with pytest.raises(UserError, match=r"README.md is not the file"):
        checksums.check(model)
    (model / "README.md").unlink()
    checksums.check(model)
    (model / "additional_chat_templates/tools.jinja").write_text("{{ tool }}")
    with pytest.raises(UserError, match=r"tools.jinja is not the file"):
        checksums.check(model)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "SHA256SUMS:1: not a line of sha256sum"),
        (f"{'0' * 64}  ../model.safetensors", "SHA256SUMS:1: not a line of sha256sum"),
        (f"{'0' * 64}  absent.safetensors", "absent.safetensors is not the file that"),
    ],
)
def test_a_listing_that_is_wrong(model: Path, content: str, said: str) -> None:
    (model / checksums.NAME).write_text(content + "\n")
    with pytest.raises(UserError, match=said):
        checksums.check(model)
