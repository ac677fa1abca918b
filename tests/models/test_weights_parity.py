"""Saved networks in live transformers on torch (`-m torch`)."""

import functools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from gad_jax.models import decoder, weights, writing
from gad_jax.models.families import FAMILIES
from gad_jax.types import Segments
from tests.models.files import (
    END,
    PAD,
    PARITY,
    START,
    VARIANTS,
    as_score,
    carried_from,
    edit_json,
)


def padded(lengths: tuple[int, ...], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sequences that end with the end token, padded on the right, and where they are."""
    width = max(lengths)
    real = np.arange(width) < np.asarray(lengths)[:, None]
    ids = np.random.default_rng(0).integers(0, 256, real.shape)
    ids[np.arange(len(lengths)), np.asarray(lengths) - 1] = END
    return np.where(real, ids, pad), real


@pytest.mark.torch
@pytest.mark.parametrize(("family", "tied"), VARIANTS)
def test_transformers_loads_what_is_saved(
    tiny: Any, carried: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    family: str, tied: bool,
) -> None:  # fmt: skip
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config, params = weights.load(tiny(family, tied))
    params = jax.tree.map(lambda x: x + 0.01, params)  # trained: no longer what the file had
    if not tied:
        monkeypatch.setattr(writing, "SHARD_BYTES", 70_000)
    writing.save(tmp_path / "out", config, params, carried)
    model, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == [END, PAD]
    ids = np.random.default_rng(0).integers(0, 512, (1, 40))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    one = jnp.ones(ids.shape, jnp.int32)
    positions = jnp.arange(40)[None]
    ours = jax.jit(functools.partial(decoder.logits, config))(
        params, jnp.asarray(ids), positions, Segments(one, one)
    )
    np.testing.assert_allclose(ours, theirs, atol=PARITY, rtol=0)


WITHOUT_SCORES = {"granite", "olmoe"}
"""transformers has no sequence classifier of these: it cannot open such a discriminator."""


@pytest.mark.torch
@pytest.mark.parametrize("pad_is_end", [False, True])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - WITHOUT_SCORES))
def test_transformers_scores_as_the_discriminator_does(
    tiny: Any, tmp_path: Path, family: str, pad_is_end: bool
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    source = shutil.copytree(tiny(family, False), tmp_path / "source")
    if pad_is_end:  # as in SmolLM2: padding is the token that ends a turn
        edit_json(source / "tokenizer_config.json", pad_token="<|im_end|>")
    config, params = as_score(*weights.load(source))
    writing.save(tmp_path / "out", config, params, carried_from(source))
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert model.config.num_labels == 1
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert reloaded.pad_token_id == model.config.pad_token_id == START
    lengths = (9, 23, 1, 16)
    ids, real = padded(lengths, reloaded.pad_token_id)
    one = jnp.asarray(real, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    scores = jax.jit(functools.partial(decoder.score, config))(
        params, jnp.asarray(ids), positions, Segments(one, one)
    )
    ours = np.asarray(scores)[np.arange(4), np.asarray(lengths) - 1] - 0.375
    with torch.no_grad():
        batch = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(real).long()).logits
        alone = [model(torch.from_numpy(ids[i : i + 1, :n])).logits for i, n in enumerate(lengths)]
    np.testing.assert_allclose(batch[:, 0], ours, atol=PARITY, rtol=0)
    np.testing.assert_allclose(np.concatenate(alone)[:, 0], ours, atol=PARITY, rtol=0)
    assert np.ptp(ours) > 1000 * PARITY
