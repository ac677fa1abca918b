#!/usr/bin/env bash
# A few hundred answers of one domain. ROWS has prompts and answers, in any of the usual formats.
set -euo pipefail
: "${ROWS:=answers.jsonl}" "${STUDENT:=Qwen/Qwen2.5-0.5B-Instruct}"

[[ -e checked.jsonl ]] || python -m gad_jax.collect check "$ROWS" --out=checked.jsonl
python -m gad_jax.train --config="$(dirname "$0")/recipe.yaml" --data.train=checked.jsonl \
    --student.path="$STUDENT" "$@"
python -m gad_jax.evaluate --model="before=$STUDENT,after=runs/domain/export/student" --template=none \
    --prompts=runs/domain/heldout.jsonl --max_new_tokens="${LONGEST:-512}" --out=runs/domain/comparison
