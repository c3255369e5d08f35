#!/usr/bin/env bash
# Every figure that this project wants from one GPU, in order of worth:
#   bash scripts/perf/gpu.sh [<output folder>] [step …]
# Each has a time limit, and all together BUDGET seconds (540); one that fails is named, the others run.
# Writes <step>.log, gpu.json (card, versions, each step's command, seconds, status, output) and gpu.md into the folder.
#   DEVICE=cpu  the same steps at toy sizes, to try the script where there is no GPU
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../entry.sh"
cd "$ROOT"
: "${PYTHON:=python3}"
: "${DEVICE:=cuda}"
: "${BUDGET:=540}"
out="${1:-runs/gpu}"
shift || true
wanted=" $* "
known=" train train_32k train_4b train_attention train_full tests decode decode_1000 decode_2465 decode_5000 kmeans "
for name in "$@"; do
  if [[ "$known" != *" $name "* ]]; then echo "error: $name: is not a step of gpu.sh;$known" >&2; exit 2; fi
done
if [[ "$DEVICE" == cuda ]] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: DEVICE: $PYTHON has no torch that sees a GPU; DEVICE=cpu tries the script at toy sizes" >&2
  exit 2
fi
mkdir -p "$out"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
: > "$out/steps.tsv"

# step <name> <seconds at most> <command …>
step() {
  local name="$1" limit="$2" start status
  shift 2
  [[ -z "${wanted// /}" || "$wanted" == *" $name "* ]] || return 0
  start="$(date +%s)"
  if ((limit > BUDGET - SECONDS)); then limit=$((BUDGET - SECONDS > 1 ? BUDGET - SECONDS : 1)); fi
  timeout -k 5 "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$(($(date +%s) - start))" "$*" >> "$out/steps.tsv"
  echo "$name: status $status, $(($(date +%s) - start)) s"
}

perf=scripts/perf
if [[ "$DEVICE" == cuda ]]; then
  # OneRec-1.7B's shape: Qwen3-1.7B with 3 x 8,192 itemic tokens.
  shape=(--size 1.7B --device cuda)
  decode=("${shape[@]}" --vocabularies qwen3 --repeats 5)
  train=(--steps 3 --kernels plain compile liger) sizes=(1.7B 0.6B) larger=4B row=8192 rows=32768
  kmeans=(--points 200000 --dim 4096 --codes 8192 --niter 5 --device cuda --repeats 1)
else
  decode=(--size toy --vocabularies small --repeats 1)
  train=(--steps 1 --sample_length 64) sizes=(toy) larger=toy row=256 rows=1024
  kmeans=(--points 2000 --dim 16 --codes 16 --niter 2 --repeats 1)
fi
# Prompts and beams of each decode step; those with tokens in their names have the shapes of published figures: NVIDIA's
# recsys-examples (1,000 and 5,000 tokens, 256 beams), FlashRec (2,465 tokens, 50 beams).
many=(--prompt 2048 --batch 16 --beams 32 128) short=(--prompt 1000 --batch 1 --beams 256)
middle=(--prompt 2465 --batch 16 --beams 50) long=(--prompt 5000 --batch 8 --beams 256)
[[ "$DEVICE" == cuda ]] || { many=(--prompt 32 --batch 2 --beams 4); short=("${many[@]}") middle=("${many[@]}") long=("${many[@]}"); }

shapes=("$PYTHON" $perf/train_shape.py "${train[@]}")
step train 130 "${shapes[@]}" --sizes "${sizes[@]}" --length "$row"
step train_32k 90 "${shapes[@]}" --sizes "${sizes[@]}" --length "$rows" --stages full
step train_4b 60 "${shapes[@]}" --sizes "$larger" --length "$row" --kernels plain
step train_attention 40 "${shapes[@]}" --sizes "${sizes[0]}" --length "$row" --stages full --recompute attention
step train_full 40 "${shapes[@]}" --sizes "${sizes[0]}" --length "$row" --stages full --recompute full
step tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/onerec tests/pretrain tests/verl_rl
step decode 60 "$PYTHON" $perf/decode.py "${decode[@]}" "${many[@]}"
step decode_1000 40 "$PYTHON" $perf/decode.py "${decode[@]}" "${short[@]}"
step decode_2465 40 "$PYTHON" $perf/decode.py "${decode[@]}" "${middle[@]}"
step decode_5000 40 "$PYTHON" $perf/decode.py "${decode[@]}" "${long[@]}"
step kmeans 60 "$PYTHON" $perf/tokenizer.py "${kmeans[@]}"

"$PYTHON" - "$out" "$DEVICE" << 'PYTHON'
import json, pathlib, sys

import torch
import transformers

folder = pathlib.Path(sys.argv[1])
card = torch.cuda.get_device_name() if sys.argv[2] == "cuda" else "cpu"
steps = []
for line in (folder / "steps.tsv").read_text().splitlines():
    name, status, seconds, command = line.split("\t")
    output = (folder / f"{name}.log").read_text(errors="replace")
    steps.append({"name": name, "command": command, "status": int(status), "seconds": int(seconds), "output": output[-20000:]})
found = {"card": card, "torch": torch.__version__, "transformers": transformers.__version__, "steps": steps}
(folder / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")
parts = [f"{card}, torch {torch.__version__}, transformers {transformers.__version__}"]
for step in steps:
    lines = [line for line in step["output"].splitlines() if line.strip()]
    tail = "\n".join(lines[-14:])
    parts.append(f"## {step['name']}: status {step['status']}, {step['seconds']} s\n\n```\n{step['command']}\n{tail}\n```")
text = "\n\n".join(parts) + "\n"
(folder / "gpu.md").write_text(text)
print(text)
PYTHON
