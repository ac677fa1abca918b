#!/usr/bin/env bash
# A style that a system prompt gives to a larger model, in a small model without the system prompt.
set -euo pipefail
: "${TEACHER:=local:Qwen/Qwen2.5-1.5B-Instruct}" "${PROMPTS:=prompts.txt}"
: "${STYLE:=You are an old sailor. Answer in one or two short sentences, in the words of the sea.}"

python -m gad_jax.collect --teacher="$TEACHER" --system="$STYLE" --prompts="$PROMPTS" \
    --out=styled.jsonl --max_new_tokens="${LONGEST:-96}"
python -m gad_jax.train --config="$(dirname "$0")/recipe.yaml" --data.train=styled.jsonl "$@"
python -m gad_jax.generate --model=runs/style --prompt="How do I keep basil fresh?"
