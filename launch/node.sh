#!/usr/bin/env bash
# One machine with all its GPUs, one process:
#     launch/node.sh --config qwen2.5-7b-gad --mesh.replica=1 --run_dir=runs/mine
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

exec python -m gad_jax.train "$@"
