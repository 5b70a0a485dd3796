#!/usr/bin/env bash
# What was measured on a GPU, part by part and repeatable: each part has a log in OUT, and times.txt says when it ended and how.
#
#     [PYTHON=python3] [TRT_PYTHON=…] [DEADLINE=3600] bash benchmarks/gpu_evidence.sh OUT PART…
#
#     bytecode   compile what torch imports, where nothing else ever has (a container with PYTHONDONTWRITEBYTECODE)
#     export     the ONNX engines of MODEL, and with TRT_PYTHON its TensorRT plans
#     selfcheck  the harness's own checks, twice
#     tests      pytest -m gpu; with TRT_PYTHON TensorRT's tests under that interpreter as well
#     overhead   benchmarks/host_overhead.py, under both interpreters
#     replay     benchmarks/replay_agreement.py
#     agree      one of several whole sets of the two engines in ENGINES; call it again minutes later, then `accel compare`
#     aa         ENGINES[0] against itself
#     eight      a set of eight variants by the full plan, which must take less than six minutes
#     sets       benchmarks/cuda_sets.sh with MODELS and PRECISIONS; `verify` is its first half
#
# MODEL (resnet18) is whose engines export, replay, agree, aa and eight take.
#
# Parts run in the order given, one after another, on the first GPU. None begins after DEADLINE seconds, and each is interrupted then.
set -uo pipefail
python=${PYTHON:-python3} trt_python=${TRT_PYTHON:-} deadline=${DEADLINE:-3600}
out=${1:?usage: gpu_evidence.sh OUT PART…}
shift
model=${MODEL:-resnet18}
read -ra engines <<<"${ENGINES:-eager:fp16+graph onnxruntime:fp16+graph}"
read -ra models <<<"${MODELS:-resnet18 mobilenetv3_small}"
read -ra trt_options <<<"${TRT_OPTIONS:-}"
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
  unset PYTHONDONTWRITEBYTECODE
  export PYTHONPYCACHEPREFIX=${PYTHONPYCACHEPREFIX:-${ACCEL_CACHE_DIR:-$HOME/.cache/accel-engines}/bytecode}
fi
[ -z "$trt_python" ] || export ACCEL_BENCH_PYTHON_TENSORRT=$trt_python

# A compiler that links libstdc++ statically makes AOTInductor packages that crash beside torch.
if ! (echo '#include <string>' && echo 'std::string s;') | "${CXX:-g++}" -shared -fPIC -x c++ - -o "$out/probe.so" 2>/dev/null ||
  ! grep -q 'libstdc++\.so' "$out/probe.so"; then
  export CXX=/usr/bin/g++
fi
rm -f "$out/probe.so"

# step NAME COMMAND…: interrupted at the deadline; its output is OUT/NAME.txt.
step() {
  local name=$1 left=$((deadline - SECONDS)) code=0
  shift
  if [ $left -le 5 ]; then
    echo "$SECONDS s: $name not begun" | tee -a "$out/times.txt"
    return
  fi
  timeout -s INT -k 10 $left "$@" >>"$out/$name.txt" 2>&1 || code=$?
  echo "$SECONDS s: $name ended with $code" | tee -a "$out/times.txt"
}

bytecode() {
  local torch folder
  torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
  local folders=("$torch")
  for folder in triton sympy mpmath networkx onnx; do [ ! -d "${torch%/*}/$folder" ] || folders+=("${torch%/*}/$folder"); done
  step bytecode "$python" -m compileall -q -j 0 "${folders[@]}"
}

exported() {
  local precision
  for precision in fp16 fp32; do
    step export "$python" -m accel export "$model" --to onnx --precision $precision --device cuda
    [ -z "$trt_python" ] ||
      step export "$trt_python" -m accel export "engines/$model.accel" --to trt --precision $precision --device cuda "${trt_options[@]}"
  done
}

tests() {
  step tests "$python" -m pytest -q -p no:cacheprovider -m gpu
  [ -z "$trt_python" ] || step tests-tensorrt "$trt_python" -m pytest -q -p no:cacheprovider \
    tests/runtimes/test_runtime_tensorrt_gpu.py tests/exporters/test_tensorrt_gpu.py tests/device
}

overhead() {
  step overhead "$python" benchmarks/host_overhead.py --only onnxruntime --only eager --check --out "$out/host-overhead-torch.json"
  [ -z "$trt_python" ] ||
    step overhead-tensorrt "$trt_python" benchmarks/host_overhead.py --only tensorrt --check --out "$out/host-overhead-tensorrt.json"
}

# bench NAME ENGINE… -- OPTION…
bench() {
  local name=$1 named=()
  shift
  while [ "$1" != -- ]; do named+=(--runtime "$1") && shift; done
  shift
  step "$name" "$python" -m accel bench "$model" --device cuda "${named[@]}" --out "$out/$name" --format markdown "$@"
}

for part in "$@"; do
  case $part in
  bytecode) bytecode ;;
  export) exported ;;
  selfcheck) for _ in 1 2; do step selfcheck "$python" -m accel selfcheck --device cuda; done ;;
  tests) tests ;;
  overhead) overhead ;;
  replay) step replay "$python" benchmarks/replay_agreement.py --bundle "engines/$model.accel" --check --out "$out/replay-agreement.json" ;;
  agree) bench agree "${engines[@]}" -- --no-baseline --max-rounds 3 ;;
  aa) bench aa "${engines[0]}" -- --aa --iterations 500 ;;
  eight) bench eight eager:fp32 eager:fp16 eager:fp16+graph compile:fp16 compile:fp16+reduce-overhead torchscript:fp16 onnxruntime:fp16 \
    onnxruntime:fp16+graph -- --max-rounds 3 ;;
  verify) VERIFY_ONLY=1 step verify bash benchmarks/cuda_sets.sh "$out/sets" "${models[@]}" ;;
  sets) step sets bash benchmarks/cuda_sets.sh "$out/sets" "${models[@]}" -- --iterations 500 --max-rounds 3 ;;
  *)
    echo "gpu_evidence: no part $part; see the head of this file" >&2
    exit 2
    ;;
  esac
done
