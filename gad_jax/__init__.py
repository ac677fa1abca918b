"""Generative Adversarial Distillation (arXiv:2511.10643) of text-only teachers, in JAX.

Layers, each importing only from those before it: `types`, `config` → `objectives`, `sharding`,
`metrics` → `models`, `data` → `rollout`, `steps` → `state`, `checkpoint`, `evaluation` → commands
(`train`, `generate`, `export`).
"""

__version__ = "0.1.0"
