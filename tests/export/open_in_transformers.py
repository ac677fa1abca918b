"""Opens exports in the transformers that is installed, and compares them with their sources.

    python tests/export/open_in_transformers.py ROOT

ROOT has one folder per case, as `cases.py` makes them: `source`, `student` with the same weights,
and `discriminator` with `scores.json`. Imports nothing of gad_jax, so that an environment with any
transformers and torch can run it.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

TEXTS = (
    "Hello, world!\n\n  def f(x1):\treturn 3.14 # Grüße, 안녕, \N{GRINNING FACE}",
    "<|im_start|>user\nName a fruit.<|im_end|>\n",
    "",
    "   42 lots",
)
MESSAGES = [{"role": "user", "content": "Name a fruit."}]
# Two networks of equal float32 weights: sums in the same order here, so nothing but rounding.
SAME = 1e-6
NO_CLASSIFIER = {"granite", "olmo2", "olmo3", "olmoe"}
"""Families of which some transformers has no sequence classifier (Granite, OLMoE: none has)."""
# Ours sums in another order, through a few layers (tests/models/files.py: PARITY).
SCORES = 1e-4


def load(auto: Any, path: Path) -> Any:
    """Returns a model; fails where a tensor was missing, left over or misshapen."""
    model, info = auto.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), (path, info)
    return model.eval()


def compare_tokenizers(source: Path, export: Path) -> None:
    """Tokens, special tokens and prompts are the source's."""
    theirs, ours = (AutoTokenizer.from_pretrained(path) for path in (source, export))
    assert type(ours) is type(theirs)
    for text in TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], text
        assert ours.decode(ours(text)["input_ids"]) == theirs.decode(theirs(text)["input_ids"])
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)
    if theirs.chat_template is not None:
        prompts = [
            tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
            for tokenizer in (theirs, ours)
        ]
        assert prompts[0] == prompts[1]


def compare_student(source: Path, export: Path) -> None:
    """Logits, greedy tokens and sampling defaults are the source's."""
    compare_tokenizers(source, export)
    theirs, ours = (load(AutoModelForCausalLM, path) for path in (source, export))
    size = ours.config.vocab_size
    ids = torch.randint(size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = (ours(ids).logits - theirs(ids).logits).abs().max().item()
    assert gap <= SAME, f"{export}: logits differ by {gap}"
    generated = [
        model.generate(ids[:1], max_new_tokens=8, do_sample=False).tolist()
        for model in (theirs, ours)
    ]
    assert generated[0] == generated[1]
    defaults = [GenerationConfig.from_pretrained(path).to_diff_dict() for path in (source, export)]
    for content in defaults:
        content.pop("eos_token_id", None)  # the export has those of the training too
        content.pop("_from_model_config", None)
    assert defaults[0] == defaults[1]


def compare_discriminator(source: Path, export: Path, expected: dict[str, Any]) -> None:
    """A reward model with one label: scores are the run's, alone and in a padded batch."""
    compare_tokenizers(source, export)
    try:
        model = load(AutoModelForSequenceClassification, export)
    except ValueError as error:
        family = json.loads((export / "config.json").read_text())["model_type"]
        if family in NO_CLASSIFIER and "Unrecognized configuration class" in str(error):
            return
        raise
    config, tokenizer = AutoConfig.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    assert config.num_labels == 1
    assert config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in expected["end_tokens"]
    rows, scores = expected["rows"], torch.tensor(expected["scores"])
    width = max(map(len, rows))
    pad = config.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).logits[:, 0]
        alone = torch.cat([model(torch.tensor([row])).logits[:, 0] for row in rows])
    for found in (batch, alone):
        gap = (found + config.score_bias - scores).abs().max().item()
        assert gap <= SCORES, f"{export}: scores differ by {gap}"


def main(root: Path) -> int:
    """Compares every case; returns the number of cases that failed."""
    logging.disable(logging.WARNING)
    failed = 0
    for case in sorted(path for path in root.iterdir() if path.is_dir()):
        try:
            compare_student(case / "source", case / "student")
            expected = json.loads((case / "discriminator" / "scores.json").read_text())
            compare_discriminator(case / "source", case / "discriminator", expected)
        except Exception as error:
            failed += 1
            print(f"{case.name}: {type(error).__name__}: {error}")
    print(f"transformers {transformers.__version__}: {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1])), 1))
