#!/usr/bin/env bash
# The whole factory on a laptop, from raw logs to the results table and report: bash scripts/quickstart.sh
#   --smoke              the same chain on a very small world, in minutes (numbers mean nothing)
#   --full               the same chain on a larger world, in about an hour: where the project's tables come from
#   --fresh              start over, in a folder of this command's; without it a run goes on after its last stage
#   --movielens <folder> MovieLens 100k instead of the toy world (RecBole's or the original files)
#   --no-rl, --rl        leave out distillation (09) and GRPO (10), which need verl and Ray (Linux); --rl keeps them
#   --seed <n>           seed of the world and of every stage (0)
#   --run_dir <folder>   where everything goes, from where you are (runs/quickstart, smoke, full or movielens of this clone)
#   --set <stage>.<NAME>=<value>   one setting of this run, as grpo.LEARNING_RATE=1e-3; as often as you like
# Real data with published numbers beside them, several seeds, one command each: scripts/recipes/*.sh.
# Settings: scripts/profiles/<PROFILE>/<stage>.env. A setting in the environment is refused: every stage with that name
# would take it. A numbered script that you call yourself takes it, before the profile's.
set -euo pipefail
caller="$PWD"
cd "$(dirname "$0")/.."
source scripts/argument.sh
source scripts/owned.sh

fresh=0 sets=""
given="${PROFILE:-}" # a profile of your own stays under --movielens
: "${PROFILE:=quick}"
while (($#)); do
  case "$1" in
    --smoke) PROFILE=smoke; : "${RUN_DIR:=$PWD/runs/smoke}" ;;
    --full) PROFILE=laptop; : "${RUN_DIR:=$PWD/runs/full}" ;;
    --fresh) fresh=1 ;;
    --rl) RL=1 ;;
    --no-rl) RL=0 ;;
    --movielens)
      argument "${2:-}" "--movielens: needs a folder; the one with ml-100k.inter or u.data"
      MOVIELENS_DIR="$(cd "$caller" && cd "$2" 2> /dev/null && pwd)" || true
      argument "$MOVIELENS_DIR" "$2: no such folder; the one with ml-100k.inter or u.data"
      PROFILE="${given:-movielens}"
      : "${RUN_DIR:=$PWD/runs/movielens}"
      shift
      ;;
    --seed) argument "${2:-}" "--seed: needs a number; --seed 0"; SEED="$2"; shift ;;
    --run_dir) argument "${2:-}" "--run_dir: needs a folder; --run_dir runs/mine"; RUN_DIR="$2"; shift ;;
    --set) argument "${2:-}" "--set: needs a setting; --set grpo.LEARNING_RATE=1e-3"; sets+="$2"$'\n'; shift ;;
    *)
      echo "error: $1: is not a flag of quickstart.sh; --smoke, --full, --fresh, --movielens, --rl, --no-rl, --seed, --run_dir or --set" >&2
      exit 2
      ;;
  esac
  shift
done
if [[ -z "${RL:-}" ]]; then
  RL=1
  [[ "$(uname -s)" == Linux ]] || RL=0
fi
export ONEREC_SETTINGS="$sets" SEED="${SEED:-0}" PROFILE RUN_DIR="${RUN_DIR:-$PWD/runs/quickstart}" MOVIELENS_DIR="${MOVIELENS_DIR:-}"
export AMAZON_SEQUENCES="${AMAZON_SEQUENCES:-}" AMAZON_ATTRIBUTES="${AMAZON_ATTRIBUTES:-}" SID_CODES="${SID_CODES:-}"
export OWN_ITEMS="${OWN_ITEMS:-}" OWN_LOGS="${OWN_LOGS:-}" OWN_COLUMNS="${OWN_COLUMNS:-}" OWN_TABLES="${OWN_TABLES:-}"
[[ "$RUN_DIR" == /* ]] || RUN_DIR="$caller/$RUN_DIR"

owned bash scripts/install.sh
source scripts/common.sh
found="$(python3 scripts/settings.py alone "$PROFILE")" || exit
# setting <stage> <NAME>: what the profile or --set says.
setting() { eval "echo $(sed -n "s/^$1\.$2=//p" <<< "$found")"; }
if [[ "$RL" == 1 && "$(setting distill TOTAL_STEPS)" != 0 ]]; then # said now, not when the stages before are done
  gpus="$(RAY_ADDRESS="" python3 -c 'from onerec.verl.cluster import gpus_by_node; print(*gpus_by_node() or ())')"
  wanted=3 # for the student, the teacher and the anchors
  [[ "$(setting distill ANCHOR_SHARE)" != 0 ]] || wanted=2
  if [[ -n "$gpus" ]] && ((gpus < wanted)); then
    echo "error: quickstart.sh: distillation wants $wanted GPUs and here are $gpus; --set distill.TOTAL_STEPS=0 leaves it out, --no-rl GRPO too" >&2
    exit 2
  fi
fi
if [[ ! -d "$RUN_DIR/.done" && -n "$(ls -A "$RUN_DIR")" ]]; then
  echo "error: $RUN_DIR: was not made by the quickstart; give a new folder or an empty one" >&2
  exit 2
fi
mkdir -p "$RUN_DIR/.done" "$RUN_DIR/logs"
# One run a folder: the lock is this shell's, and its keepers', until they have ended.
exec 8>> "$RUN_DIR/.done/lock"
if ! python3 -c 'import fcntl; fcntl.flock(8, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2> /dev/null; then
  echo "error: $RUN_DIR: another run is at work in it; wait until it has ended, or give another --run_dir" >&2
  exit 2
fi
# A run keeps one set of settings: numbers from two would not belong in one table.
settings="$found
$(for name in SEED MOVIELENS_DIR AMAZON_SEQUENCES AMAZON_ATTRIBUTES SID_CODES OWN_ITEMS OWN_LOGS OWN_COLUMNS OWN_TABLES; do
  [[ "$name" == OWN_* && -z "${!name}" ]] || printf '%s=%q\n' "$name" "${!name}"; done)"
if ((!fresh)) && [[ -s "$RUN_DIR/.done/settings" ]] && ! diff -q <(echo "$settings") "$RUN_DIR/.done/settings" >/dev/null; then
  finished=("$RUN_DIR"/.done/[0-9]*)
  if [[ -e "${finished[0]}" ]]; then
    echo "error: $RUN_DIR: was begun with other settings ($(diff "$RUN_DIR/.done/settings" <(echo "$settings") | grep '^[<>]' | tr '\n' ' ')); --fresh starts over, --run_dir keeps both" >&2
    exit 2
  fi
  fresh=1 # before the first stage has finished there is nothing to keep
fi
if ((fresh)); then # what the stages make, and nothing else; first that any of them has finished
  rm -rf "$RUN_DIR"/.done/[0-9]*
  (cd "$RUN_DIR" && rm -rf raw_data toy_raw_data tokenizer output validation models benchmarks report logs/*)
fi
echo "$settings" > "$RUN_DIR/.done/settings.new"
mv "$RUN_DIR/.done/settings.new" "$RUN_DIR/.done/settings"

# What the stages of this profile took where they were measured, for the time left; other settings take another time.
expected=""
[[ -n "$sets" || ! -f "scripts/profiles/$PROFILE/seconds" ]] || expected="$(cat "scripts/profiles/$PROFILE/seconds")"
if [[ "$RL" != 1 ]]; then
  expected="$(sed -e '/^09_/d' -e '/^10_/d' <<< "$expected")"
elif [[ "$expected" != *$'\n10_'* ]]; then
  expected="" # measured without the two
fi

# stage <name> <script> [arguments]: run a numbered script unless it has finished. Its output goes to logs/<name>.log; a
# terminal shows how far it is.
began=$SECONDS
stage() {
  if [[ -f "$RUN_DIR/.done/$1" ]]; then
    echo "== $1: finished before"
  elif ! owned python3 scripts/watch.py "$1" "$RUN_DIR" "$((SECONDS - began))" "$expected" bash "${@:2}"; then
    owned_end || true # what runs beside it is worth its result
    failed "$1"
  fi
}

# beside <name> <script> [arguments]: the same, but the stages that follow begin at once, until one says `finished`: a
# stage of a small model leaves a core idle, verl's start above all. One runs beside them at a time.
beside() {
  finished
  if [[ -f "$RUN_DIR/.done/$1" ]]; then
    echo "== $1: finished before"
  else
    beside="$1"
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-$half}" owned_beside \
      python3 scripts/watch.py --beside "$1" "$RUN_DIR" "$((SECONDS - began))" "" bash "${@:2}"
  fi
}
beside="" half="$(python3 -c 'import os; print(max(1, len(os.sched_getaffinity(0)) // 2 if hasattr(os, "sched_getaffinity") else 1))')"
finished() { owned_end || failed "$beside"; }

failed() {
  echo "error: $1: failed (the message is above and in $RUN_DIR/logs/$1.log); mend it and run the same command again to go on from here" >&2
  exit 2
}

# evaluate <number> <model>: evaluate a model, where EVAL_STAGES of evaluate.env names it.
evaluate() {
  if [[ " $eval_stages " == *" $2 "* ]]; then beside "$1_evaluate" scripts/11_evaluate.sh "$2"; fi
}

# Raw logs, captions and embeddings: the toy world, MovieLens, Amazon or tables of one's own.
stage 01_world scripts/01_world.sh
# Which may have measured some of the settings.
found="$(python3 scripts/settings.py list "$PROFILE")" || exit
eval_stages="$(setting evaluate EVAL_STAGES)" validation_users="$(setting evaluate VALIDATION_USERS)"
stg1_steps="$(setting stg1 NUM_TRAINING_STEPS)" stg2_steps="$(setting stg2 NUM_TRAINING_STEPS)"
distill_steps="$(setting distill TOTAL_STEPS)" grpo_steps="$(setting grpo NUM_TRAINING_STEPS)"
# A tiny Qwen3 that speaks: stands for the base LLM, which a cluster run downloads.
beside 04_base_model scripts/04_base_model.sh
# Item embeddings to SIDs by residual k-means.
stage 02_tokenizer scripts/02_tokenizer.sh
# Logs and SIDs to training records, RL data and the benchmark's test files.
stage 03_data scripts/03_data.sh
finished
evaluate 04 base
# Itemic tokens into the vocabulary.
stage 05_expand_vocab scripts/05_expand_vocab.sh
beside 11_baselines scripts/11_evaluate.sh baselines
# Stage 1: only the itemic embeddings learn. Stage 2: everything learns, general text too. 0 steps leave a stage out.
if ((${stg1_steps:-1})); then
  stage 06_pretrain_stg1 scripts/06_pretrain_stg1.sh
  evaluate 06 stage1
fi
if ((${stg2_steps:-1})); then
  stage 07_pretrain_stg2 scripts/07_pretrain_stg2.sh
  if ((${validation_users:-0})); then stage 07_choose scripts/choose_checkpoint.sh stage2; fi
  evaluate 07 stage2
fi
# SFT on the eight tasks and general chat.
stage 08_posttrain_sft scripts/08_posttrain_sft.sh
if ((${validation_users:-0})); then stage 08_choose scripts/choose_checkpoint.sh sft; fi
evaluate 08 sft
if [[ "$RL" == 1 ]]; then
  # On-policy distillation: the base model teaches the SFT model, so that general ability comes back.
  if ((${distill_steps:-1})); then
    stage 09_distillation scripts/09_distillation.sh
    evaluate 09 distill
  fi
  # GRPO: what users take is rewarded.
  if ((${grpo_steps:-1})); then
    stage 10_rl_grpo scripts/10_rl_grpo.sh
    evaluate 10 rl
  fi
fi
finished
# The table, as text, Markdown, JSON and one HTML page.
rm -f "$RUN_DIR/.done/12_report"
stage 12_report scripts/12_report.sh
sed '/^+ /d; /^from the environment:/d' "$RUN_DIR/logs/12_report.log"
echo "the whole factory: $((SECONDS - began)) s; report: $RUN_DIR/report/report.html"
# A page where one looks at what the model recommends to the users of the test file.
model="$(first_of "$MODELS/rl/hf" "$MODELS/sft/hf")"
if [[ -d "$model" ]]; then echo "ask it: bash $(printf '%q' "$ROOT/benchmarks/serve.sh") $(printf '%q' "$model")"; fi
# The page ranks without the prior unless it is asked to.
hybrid="$BENCHMARK_BASE_DIR/results/${VERSION:-v1.0}/results_$(basename "$(dirname "$model")")_prior/metrics.json"
if [[ -f "$hybrid" ]]; then
  python - "$hybrid" << 'PYTHON'
import json, sys
weights = {f"{note['weight']:g}" for note in json.load(open(sys.argv[1]))["prior"].values()}
print(f"with the prior, as the report has it: prior weight {' or '.join(sorted(weights))} on the page, prior_weight of a request")
PYTHON
fi
