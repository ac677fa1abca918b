#!/usr/bin/env bash
# A reasoning teacher's answers. THOUGHTS=drop: the student answers at once; keep: it thinks first.
set -euo pipefail
: "${ROWS:=reasoned.jsonl}" "${THOUGHTS:=drop}"

python -m gad_jax.train --config="$(dirname "$0")/$THOUGHTS.yaml" --data.train="$ROWS" "$@"
python -m gad_jax.generate --model="runs/reasoning-$THOUGHTS" --prompt="What is 17 times 23?" \
    --max_new_tokens="${LONGEST:-2048}"
python -m gad_jax.evaluate "runs/reasoning-$THOUGHTS"
