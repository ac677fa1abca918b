#!/usr/bin/env bash
# From an API's answers to a served student. MODEL names the teacher, PROMPTS a file of prompts.
set -euo pipefail
: "${MODEL:?is the name of the teacher}" "${PROMPTS:=prompts.txt}" "${PORT:=8000}"
: "${BASE_URL:=https://api.openai.com/v1}" "${KEY_VARIABLE=OPENAI_API_KEY}"
api=(--model="$MODEL" --prompts="$PROMPTS" --base_url="$BASE_URL" --key_variable="$KEY_VARIABLE")

python -m gad_jax.collect "${api[@]}" --out=teacher.jsonl --dry_run
python -m gad_jax.collect "${api[@]}" --out=teacher.jsonl
[[ -e checked.jsonl ]] || python -m gad_jax.collect check teacher.jsonl --out=checked.jsonl
python -m gad_jax.train --config="$(dirname "$0")/recipe.yaml" --data.train=checked.jsonl "$@"
python -m gad_jax.evaluate runs/api-teacher
exec python -m gad_jax.serve --model runs/api-teacher --name student --port "$PORT"
