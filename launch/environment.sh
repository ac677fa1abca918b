# shellcheck shell=bash
# What every launcher sets before python starts. Source it.

# Weights and programs compiled once are read by all nodes and by the next run: shared storage.
export GAD_JAX_CACHE=${GAD_JAX_CACHE:-$HOME/.cache/gad_jax}

# The share of a GPU's memory that jax takes; its default of 0.75 leaves 20 GB of an H100 idle.
# gad_jax.plan counts with the same share.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

# GPUs only. Without a flag XLA starts a gather of weights where it is needed and waits for it; its
# latency-hiding scheduler moves it before the layer that runs meanwhile. TPUs do so by default.
if command -v nvidia-smi >/dev/null; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
fi
