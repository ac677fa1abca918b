"""What a model card says of using the network: how to load it, and whom to cite."""

import json
from typing import TYPE_CHECKING

from gad_jax.data.chat import WRAPPERS
from gad_jax.models import families, provenance

if TYPE_CHECKING:
    from gad_jax.training.card import Subject

_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "PATH"  # this directory, or its name on the hub
base = "BASE"
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path)
"""

_LOAD = {
    "student": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "PATH"  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
messages = [{"role": "user", "content": PROMPT}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
ids, mask = inputs["input_ids"], inputs["attention_mask"]
answer = model.generate(ids, attention_mask=mask, max_new_tokens=256)
print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))
```""",
    "discriminator": """```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = "PATH"  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path)
messages = [{"role": "user", "content": PROMPT}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
pieces = [prompt, "An apple." + END]
ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False).input_ids]
print(model(torch.tensor([ids])).logits[0, 0])
```

Only differences between the scores of answers to one prompt have a meaning. Put the end token after
an answer that is complete.""",
}


_LOAD["adapter"] = (
    f"```python\n{_ADAPTER}{_LOAD['student'][_LOAD['student'].index('messages = ') :]}"
)

_FIRST = {"granite": "", "olmo2": "5", "olmo3": "5", "olmoe": ""}
"""The first transformers with a sequence classifier of a family; empty: there is none yet."""


def _versions(subject: "Subject") -> str:
    if subject.adapter:
        return "PEFT opens this directory on its base."
    if subject.family in families.OWN:
        return (
            f"gad-jax opens this directory once the family {subject.family} is registered; "
            "transformers needs the code of that family."
        )
    if subject.part == "student" or subject.family not in _FIRST:
        return "transformers 4.57 and 5 open this directory."
    first = _FIRST[subject.family]
    if first:
        return f"transformers {first} opens this directory; earlier ones lack the class."
    return (
        f"transformers has no class for a sequence classifier of the family {subject.family} yet: "
        "gad-jax alone opens this directory."
    )


def how_to_load(subject: "Subject") -> str:
    """Returns the section that says how to load and ask the network."""
    wrapper = WRAPPERS[subject.config.data.template]
    if subject.adapter and subject.part == "discriminator":
        return "## How to load it\n\nPEFT opens it on a sequence classifier with one label."
    base = provenance.hub_id(subject.name, subject.model) or "the base model"
    code = (
        _LOAD["adapter" if subject.adapter else subject.part]
        .replace("BASE", base)
        .replace("END", json.dumps(subject.end_token))
    )
    text = f"## How to load it\n\n{_versions(subject)}\n\n"
    alone = _FIRST.get(subject.family) == "" or subject.family in families.OWN
    if subject.part == "discriminator" and alone:
        return text.rstrip()
    if wrapper == "{instruction}":
        return text + code.replace("PROMPT", '"Name a fruit."')
    prompt = 'WRAPPER.replace("{instruction}", "Name a fruit.")'
    said = (
        "Training wrapped the last user message as `WRAPPER` does. Wrap yours too: otherwise the "
        "prompt is unlike those of the training.\n\n"
    )
    define = f"WRAPPER = {json.dumps(wrapper)}\n\n"
    return text + said + code.replace("path =", f"{define}path =", 1).replace("PROMPT", prompt)


_CITATION = """## Citation

```bibtex
@article{ye2025blackbox,
  title = {Black-Box On-Policy Distillation of Large Language Models},
  author = {Ye and others},
  journal = {arXiv preprint arXiv:2511.10643},
  year = {2025}
}
```"""


def citation(subject: "Subject") -> str:
    """Returns the paper of GAD, for a run with one of its stages; else nothing."""
    ours = {"warmup", "offpolicy", "gad"}
    return _CITATION if ours.intersection(subject.config.stages) else ""
