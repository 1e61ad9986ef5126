#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Repeats a table of projects/SparseRefine/README.md, or one of its rows, from data to number.
#
#   projects/SparseRefine/tools/reproduce.sh TABLE[/ARM] [SEED ...] [-- KEY VALUE ...]
#
#   rgbweed, camvid      dense arms, SparseRefine and its oracle; by default seeds 0 1 2
#   rgbweed/dense_low    one row of it: an arm is a config of configs/TABLE/
#   rgbweed/ablation     selectors, fractions, ensemblers and coarse maps with the same weights
#
# DETECTRON2_DATASETS names the folder of data sets; OUTPUT (default output/reproduce) takes all that
# is written, PYTHON is .venv/bin/python where that is there. What was trained already is not
# trained again, and a training that was stopped goes on. KEY VALUE pairs hold for every training and
# for the comparison.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

usage() {
  sed -n '3,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

project=projects/SparseRefine
output=${OUTPUT:-output/reproduce}
python=${PYTHON:-python}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi

[ $# -ge 1 ] || usage
table=${1%%/*}
row=${1#"$table"}
row=${row#/}
shift
seeds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  seeds+=("$1")
  shift
done
[ ${#seeds[@]} -gt 0 ] || seeds=(0 1 2)
[ $# -eq 0 ] || shift
given=("$@")

case $table in
  rgbweed)
    arms=(dense_eighth dense_low dense_half dense_full)
    arms+=(pointrend_low pointrend_half pointrend_full)
    arms+=(sparse_refine_eighth sparse_refine_pointrend sparse_refine_pretrained)
    arms+=(sparse_refine_fast sparse_refine)
    ;;
  camvid) arms=(dense_low dense_full sparse_refine sparse_refine_pretrained sparse_refine_trained) ;;
  *) usage ;;
esac
case $row in
  "") ;;
  ablation) arms=(sparse_refine) ;;
  *)
    [ -f "$project/configs/$table/$row.yaml" ] || usage
    arms=("$row")
    ;;
esac

# whose weights an arm takes, and on which base it stands
trained_as() { if [ "$1" = sparse_refine_fast ]; then echo sparse_refine; else echo "$1"; fi; }
base_of() {
  case $table/$1 in
    */sparse_refine_eighth) echo dense_eighth ;;
    */sparse_refine_pointrend) echo pointrend_low ;;
    rgbweed/sparse_refine_pretrained) echo dense_half ;;
    *) echo dense_low ;;
  esac
}
weights_of() { # ARM SEED; a pretrained extractor has none but its dense model's
  [ "$1" = sparse_refine_pretrained ] || echo "$output/$table/seed_$2/$(trained_as "$1")/model_final.pth"
}

train() { # ARM SEED
  local arm options=() file
  arm=$(trained_as "$1")
  file=$(weights_of "$arm" "$2")
  case $table/$arm in
    */sparse_refine_pretrained)
      train "$(base_of "$arm")" "$2"
      train dense_full "$2"
      return
      ;;
    */sparse_refine*)
      train "$(base_of "$arm")" "$2"
      options=(MODEL.SPARSE_REFINE.BASE.WEIGHTS "$(weights_of "$(base_of "$arm")" "$2")")
      if [ "$arm" = sparse_refine_trained ]; then # its network starts as dense full
        train dense_full "$2"
        options+=(MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS "$(weights_of dense_full "$2")")
      fi
      ;;
    */*_full) # starts as the trained model of low resolution
      train "${arm%full}low" "$2"
      options=(MODEL.WEIGHTS "$(weights_of "${arm%full}low" "$2")")
      ;;
  esac
  [ -f "$file" ] && return
  "$python" $project/train_net.py --resume --config-file "$project/configs/$table/$arm.yaml" \
    SEED "$2" DATASETS.TEST "()" OUTPUT_DIR "$(dirname "$file")" ${options[@]+"${options[@]}"} ${given[@]+"${given[@]}"}
}

compared=()
add() { # NAME ARM [KEY=VALUE ...]
  local name=$1 arm=$2 config=$project/configs/$table/$2.yaml base=()
  shift 2
  if [[ $arm == sparse_refine* ]]; then
    base=("MODEL.SPARSE_REFINE.BASE.WEIGHTS=$(weights_of "$(base_of "$arm")" '{seed}')")
  fi
  if [[ $arm == sparse_refine_pretrained || $arm == sparse_refine_trained ]]; then
    base+=("MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS=$(weights_of dense_full '{seed}')")
  fi
  compared+=(--arm "$name" "$config" "$(weights_of "$arm" '{seed}')" ${base[@]+"${base[@]}"} "$@")
}

for seed in "${seeds[@]}"; do
  for arm in "${arms[@]}"; do train "$arm" "$seed"; done
done

method=MODEL.SPARSE_REFINE
oracle=()
if [ "$row" = ablation ]; then
  for fraction in 0.02 0.05 0.1 0.2 0.4; do
    add "fraction_$fraction" sparse_refine $method.SELECTOR.FRACTION=$fraction
  done
  add margin sparse_refine $method.SELECTOR.NAME=MarginBudgetSelector
  add random sparse_refine $method.SELECTOR.NAME=RandomBudgetSelector
  add nearest sparse_refine $method.COARSE_INTERPOLATION=nearest
  add entropy_ensembler sparse_refine $method.ENSEMBLER.NAME=EntropyEnsembler
  add refined_alone sparse_refine $method.ENSEMBLER.NAME=RefinedEnsembler
else
  for arm in "${arms[@]}"; do add "$arm" "$arm"; done
  if [[ ${arms[${#arms[@]} - 1]} == sparse_refine* ]]; then oracle=(--oracle); fi
fi
"$python" $project/tools/compare.py --output "$output/$table/${row:-table}" --seeds "${seeds[@]}" \
  ${oracle[@]+"${oracle[@]}"} "${compared[@]}" -- ${given[@]+"${given[@]}"}
