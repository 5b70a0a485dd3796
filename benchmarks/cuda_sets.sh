#!/usr/bin/env bash
# The committed sets of results/: the shipped models through every runtime on one GPU, verified on CIFAR-10's test set, one set for
# each model and precision.
#
#     [PRECISIONS="fp32 fp16"] [VERIFY_ONLY=1] bash benchmarks/cuda_sets.sh OUT [MODEL…] [-- options of accel bench]
#
# Writes OUT/MODEL-cuda0-TIME/. Interrupted (or out of a lease's time), the same command goes on where it stopped, on the same machine.
# Timing runs on the first GPU alone, one process at a time. With a second GPU each precision is verified on a GPU of its own beforehand,
# at the same time: cold compilers take most of a set's time, and nothing is timed then. VERIFY_ONLY ends before anything is timed.
#
# PYTHON names the interpreter (default python3). TRT_PYTHON names one that has TensorRT, with TRT_OPTIONS for its exports, as
# TRT_OPTIONS="--tactic-sources edge-mask-convolutions,jit-convolutions"; without it plans are built where PYTHON can import tensorrt,
# and what is not there becomes a row that says so.
set -euo pipefail
python=${PYTHON:-python3}
out=${1:?usage: [PRECISIONS="fp32 fp16"] cuda_sets.sh OUT [MODEL…] [-- options of accel bench]}
shift
read -ra precisions <<<"${PRECISIONS:-fp32 fp16}"
read -ra trt_options <<<"${TRT_OPTIONS:-}"
models=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do models+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#models[@]} -gt 0 ] || models=(resnet18 mobilenetv3_small)
gpus=$(nvidia-smi -L | wc -l)

# Without bytecode every process, and each of Inductor's compile workers, would compile torch's sources anew.
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
  unset PYTHONDONTWRITEBYTECODE
  export PYTHONPYCACHEPREFIX=${PYTHONPYCACHEPREFIX:-${ACCEL_CACHE_DIR:-$HOME/.cache/accel-engines}/bytecode}
fi

trt_python=${TRT_PYTHON:-}
if [ -n "$trt_python" ]; then
  export ACCEL_BENCH_PYTHON_TENSORRT=$trt_python
elif "$python" -c 'import tensorrt' 2>/dev/null; then
  trt_python=$python
fi

# All files of a model that torch makes, in one process: importing it again for each would take longer than most exports.
exported() {
  "$python" - "$@" <<'PYTHON'
import sys
from accel.cli import main

model, *precisions = sys.argv[1:]
for kind in ("onnx", "torchscript", "aoti"):
    for precision in precisions:
        if main(["export", model, "--to", kind, "--precision", precision, "--device", "cuda", "--format", "csv"]):
            print(f"cuda_sets: {model} has no {kind} engine in {precision}; its rows will say so", file=sys.stderr)
PYTHON
}

# What `--runtime all` shows on a GPU, in one precision, whether or not the file is there.
shown() {
  "$python" - "$1" <<'PYTHON'
import sys
from accel.runtimes import RUNTIMES, refusal
from accel.types import Variant

for name, row in RUNTIMES.items():
    for options in row.showcase.get("cuda", ()):
        variant = Variant(name, sys.argv[1], tuple(sorted(options)))
        if variant.precision in row.precisions and not refusal(variant, "cuda:0"):
            print(variant)
PYTHON
}

# accel_with OPTION PRECISION COMMAND…: the command with every shown variant. 4 means that something named is not here: its row says what.
accel_with() {
  local option=$1 precision=$2 code=0 named=()
  shift 2
  while read -r variant; do named+=("$option" "$variant"); done < <(shown "$precision")
  "$python" -m accel "$@" "${named[@]}" --device cuda || code=$?
  [ $code -eq 0 ] || [ $code -eq 4 ]
}

for model in "${models[@]}"; do
  # All of a model's files first: a set goes on only while its bundle stays as it was. A crash of one compiler stops no other file.
  exported "$model" "${precisions[@]}" >&2 || echo "cuda_sets: exporting $model ended early; what is missing has a row that says so" >&2
  if [ -n "$trt_python" ]; then
    for precision in "${precisions[@]}"; do
      "$trt_python" -m accel export "engines/$model.accel" --to trt --precision "$precision" --device cuda "${trt_options[@]}" >&2 ||
        echo "cuda_sets: $model has no TensorRT plan in $precision; its rows will say so" >&2
    done
  fi
  if [ "$gpus" -gt 1 ] || [ -n "${VERIFY_ONLY:-}" ]; then
    CUDA_VISIBLE_DEVICES=0 "$python" -m accel verify "$model" --variant eager:fp32 --device cuda >&2 # the reference, for both
    waiting=() number=0
    for precision in "${precisions[@]}"; do
      CUDA_VISIBLE_DEVICES=$((number++ % gpus)) accel_with --variant "$precision" verify "$model" >&2 &
      waiting+=($!)
      [ "$gpus" -gt 1 ] || wait "$!" || true # one at a time: compilers that tune themselves beside another choose badly
    done
    for job in "${waiting[@]}"; do wait "$job" || echo "cuda_sets: a verification of $model ended early; the set will say more" >&2; done
  fi
  [ -z "${VERIFY_ONLY:-}" ] || continue
  for precision in "${precisions[@]}"; do
    CUDA_VISIBLE_DEVICES=0 accel_with --runtime "$precision" bench "$model" --out "$out" "$@"
  done
done
