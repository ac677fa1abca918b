"""Parity with live transformers on torch (`-m torch`)."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.models import weights
from tests.models.record_reference import NAMES, tokens
from tests.models.variants import PARITY, logits, rows


def torch_logits(directory: Path, ids: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values()), loading
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()).logits.numpy()


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_parity_with_live_transformers(models: Any, name: str) -> None:
    directory, config, params = models(name)
    ids = tokens(2, 100)
    ours = logits(config, params, *rows(ids))
    np.testing.assert_allclose(ours, torch_logits(directory, ids), atol=PARITY, rtol=0)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_parity_with_what_transformers_saves(models: Any, tmp_path: Path, name: str) -> None:
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    directory, config, _ = models(name)
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "rope_parameters" in text, "this version writes the older form: nothing was tested"
    again, params = weights.load(tmp_path)
    assert again == config
    ids = tokens(1, 100)
    ours = logits(again, params, *rows(ids))
    np.testing.assert_allclose(ours, torch_logits(tmp_path, ids), atol=PARITY, rtol=0)


PROMPTS = ("What is the capital of France?", "Write a haiku about rain.", "Explain 2 + 2 = 4.")


@pytest.mark.slow
@pytest.mark.torch
def test_the_real_student_says_what_it_says_in_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from gad_jax.data.chat import Chat
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.models import source
    from gad_jax.rollout import engine

    directory = source.resolve("smollm2-135m-instruct")
    chat = Chat.load(directory, "none")
    prompts = [
        np.asarray(chat.encode_prompt([{"role": "user", "content": text}]), np.int32)
        for text in PROMPTS
    ]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        config, params = weights.load(directory, mesh)
        settings = engine.RolloutProgram(1, 32, chat.end_tokens, chat.pad_token)
        indices = np.arange(3, dtype=np.int32)
        rollout = engine.generate(
            config, params, prompts, indices, jax.random.key(0), settings, mesh
        )
    config, params = weights.load(directory)
    ours = [logits(config, params, *rows(prompt[None])) for prompt in prompts]
    for index, prompt in enumerate(prompts):
        ids = torch.from_numpy(prompt[None]).long()
        with torch.no_grad():
            theirs = model(ids).logits.numpy()
            answer = model.generate(ids, max_new_tokens=32, do_sample=False)[0, len(prompt) :]
        # 30 layers: 9 of 1.8 million logits differ by a little more than 1e-4.
        np.testing.assert_allclose(ours[index], theirs, atol=2 * PARITY, rtol=0)
        length = int(rollout.lengths[index, 0])
        assert rollout.tokens[index, 0, :length].tolist() == answer.tolist()
