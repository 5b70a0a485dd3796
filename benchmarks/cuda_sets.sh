#!/usr/bin/env bash
# The committed sets of results/: both shipped models through every runtime on one GPU, FP32 and FP16, verified on CIFAR-10's test set.
#
#     bash benchmarks/cuda_sets.sh OUT [MODEL…] [-- options of accel bench]
#
# Writes OUT/MODEL-cuda0-TIME/. Interrupted (or out of a lease's time), the same command goes on where it stopped, on the same machine.
# PYTHON names the interpreter (default python3).
set -euo pipefail
python=${PYTHON:-python3}
out=${1:?usage: cuda_sets.sh OUT [MODEL…] [-- options of accel bench]}
shift
models=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do models+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#models[@]} -gt 0 ] || models=(resnet18 mobilenetv3_small)

variants=()
for precision in fp32 fp16; do
  for runtime in eager compile torchscript onnxruntime; do variants+=(--runtime "$runtime:$precision"); done
  for mode in reduce-overhead max-autotune; do variants+=(--runtime "compile:$precision+$mode"); done
done
for model in "${models[@]}"; do
  for format in onnx torchscript; do
    for precision in fp32 fp16; do
      "$python" -m accel export "$model" --to "$format" --precision "$precision" --device cuda --format csv >&2
    done
  done
  "$python" -m accel bench "$model" "${variants[@]}" --device cuda --out "$out" "$@"
done
