#!/usr/bin/env bash
# The committed sets of results/: the shipped models through every runtime on one GPU, verified on CIFAR-10's test set, one set for
# each model and precision.
#
#     [PRECISIONS="fp32 fp16"] bash benchmarks/cuda_sets.sh OUT [MODEL…] [-- options of accel bench]
#
# Writes OUT/MODEL-cuda0-TIME/. Interrupted (or out of a lease's time), the same command goes on where it stopped, on the same machine.
# PYTHON names the interpreter (default python3). TensorRT's plans are built where that interpreter can import tensorrt; what is not
# there becomes a row that says so.
set -euo pipefail
python=${PYTHON:-python3}
out=${1:?usage: [PRECISIONS="fp32 fp16"] cuda_sets.sh OUT [MODEL…] [-- options of accel bench]}
shift
read -ra precisions <<<"${PRECISIONS:-fp32 fp16}"
models=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do models+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#models[@]} -gt 0 ] || models=(resnet18 mobilenetv3_small)

formats=(onnx torchscript aoti)
"$python" -c 'import tensorrt' 2>/dev/null && formats+=(tensorrt)

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

for model in "${models[@]}"; do
  # All of a model's files first: a set goes on only while its bundle stays as it was.
  for format in "${formats[@]}"; do
    for precision in "${precisions[@]}"; do
      "$python" -m accel export "$model" --to "$format" --precision "$precision" --device cuda --format csv >&2 ||
        echo "cuda_sets: $model has no $format engine in $precision; its rows will say so" >&2
    done
  done
  for precision in "${precisions[@]}"; do
    variants=()
    while read -r variant; do variants+=(--runtime "$variant"); done < <(shown "$precision")
    # 4: something that was named is not here. Its row says what, and the other rows stand.
    "$python" -m accel bench "$model" "${variants[@]}" --device cuda --out "$out" "$@" || { code=$?; [ $code -eq 4 ] || exit $code; }
  done
done
