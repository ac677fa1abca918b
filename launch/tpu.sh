#!/usr/bin/env bash
# A Cloud TPU slice, one process per host. Makes the slice if it does not exist, copies this
# repository to its hosts, installs it and starts the run on all of them:
#     ZONE=us-east5-a launch/tpu.sh NAME v5p-32 --config qwen2.5-14b-gad --run_dir=/mnt/shared/mine
# /mnt/shared stands for storage that all hosts mount. Delete the slice yourself afterwards:
#     gcloud compute tpus tpu-vm delete NAME --zone=$ZONE
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?the name of the slice}
kind=${2:?its type, such as v5p-32}
shift 2
: "${ZONE:?set ZONE to the zone of the slice}"
tpu=(gcloud compute tpus tpu-vm)

if ! "${tpu[@]}" describe "$name" --zone="$ZONE" >/dev/null 2>&1; then
    "${tpu[@]}" create "$name" --zone="$ZONE" --accelerator-type="$kind" \
        --version="${VERSION:-v2-alpha-tpuv5}"
fi
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
"${tpu[@]}" scp "$archive" "$name:gad_jax.tar.gz" --zone="$ZONE" --worker=all

flags=
((${#})) && flags=$(printf ' %q' "$@")
"${tpu[@]}" ssh "$name" --zone="$ZONE" --worker=all --command="
    set -e
    mkdir -p gad_jax && tar -xzf gad_jax.tar.gz -C gad_jax && cd gad_jax
    python3 -m venv .venv && . .venv/bin/activate
    pip install -q -r requirements.txt 'jax[tpu]'
    . launch/environment.sh
    python -m gad_jax.train$flags"
