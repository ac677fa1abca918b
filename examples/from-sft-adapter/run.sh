#!/usr/bin/env bash
# GAD on top of an SFT adapter: ADAPTER is a PEFT directory, BASE the model that it was made for.
set -euo pipefail
: "${ADAPTER:?is a PEFT adapter directory}" "${BASE:?is the model that it was made for}"
: "${ROWS:=teacher.jsonl}"
setting() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$ADAPTER/adapter_config.json" "$1"; }

python -m gad_jax.train --config="$(dirname "$0")/recipe.yaml" --student.path="$BASE" \
    --lora.adapter="$ADAPTER" --lora.rank="$(setting r)" --lora.alpha="$(setting lora_alpha)" \
    --data.train="$ROWS" "$@"
python -m gad_jax.export runs/from-sft --part=student
