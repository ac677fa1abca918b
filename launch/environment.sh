# shellcheck shell=bash
# What every launcher sets before python starts. Source it.

# All nodes and the next run read the weights and compiled programs of the first: shared storage.
export GAD_JAX_CACHE=${GAD_JAX_CACHE:-$HOME/.cache/gad_jax}

# The share of a GPU's memory that jax takes; its default of 0.75 leaves 20 GB of an H100 idle.
# gad_jax.plan counts with the same share.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

# GPUs only. Without a flag XLA starts an all-gather of weights where they are needed, and waits for
# it. Its latency-hiding scheduler starts it one layer earlier. TPUs do so by default.
if command -v nvidia-smi >/dev/null; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
fi
