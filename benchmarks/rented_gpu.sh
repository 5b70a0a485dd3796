#!/usr/bin/env bash
# Sets on a bare GPU host that is paid by the minute: what is not timed runs in the background, a queue for each GPU, while further
# files still arrive; then one set after another is timed, with nothing beside it.
#
#     bash rented_gpu.sh begin CHECKOUT CARRIED     copy both, take in what CARRIED has, start the queues in the background
#     bash rented_gpu.sh take FOLDER                parts of bundles.tar or caches.tar.xz from an earlier host; the last parts unpack both
#     bash rented_gpu.sh here NAME                  something that a queue waits for has arrived; says whether accel starts with it
#     bash rented_gpu.sh wait SECONDS               until the queues are empty, at most so long; then what became of each task
#     bash rented_gpu.sh stop                       end the queues and what they have started
#     bash rented_gpu.sh set MODEL PRECISION SECONDS [options of accel bench]      begin or go on with a set, interrupted after SECONDS
#     bash rented_gpu.sh part NAME SECONDS          a part of gpu_evidence.sh
#     bash rented_gpu.sh home OUT                   results and logs
#     bash rented_gpu.sh home OUT caches|bundles K  the K-th four (from 0) of the files of at most 15 MiB that the compile caches, or bundles, make
#
# Everything lies in BASE (default ~/rented): checkout/, out/ (logs, times.txt, sets/), python310 (where CARRIED says how, TRT_PYTHON).
# CARRIED may hold: weights/MODEL/weights.safetensors, datasets/ (as in accel's cache; *.npy.xz are unpacked), site/ (packages for
# PYTHON), head.bundle (a git bundle of what HEAD is to be), env.sh (sourced by every call; PYTHONPATH, TRT_PYTHON, CXX and the queues belong
# there). What `home` brought from an earlier host comes after it, with `take`.
#
# QUEUE0 and QUEUE1 are the tasks of the first and the second GPU, in order, with blanks between; with one GPU both run on it, QUEUE0 first:
#
#     await:NAME                      until `here NAME`, or until a task of that name has ended
#     bytecode                        compile what torch imports
#     export:MODEL:FORMAT[+FORMAT]    FP32 and FP16 in one process
#     trt:MODEL:PRECISION             a plan, by TRT_PYTHON, with TRT_OPTIONS and LEVEL_MODEL (an optimization level)
#     reference:MODEL                 eager FP32 on the test set
#     compile:MODEL:PRECISION         verify the modes of torch.compile, one after another
#     warm:MODEL:PRECISION            the same, though the results are known: the compile caches of a fresh host are filled
#     rest:MODEL:PRECISION            verify every other variant
#     tests[:FOLDER]                  pytest -m gpu
#
# Tuning (compile, trt) must have its GPU to itself: put nothing beside it. A model's reference comes before its other verifications.
# Tested on a CPU: DEVICE=cpu SHOWN="eager: torchscript:" QUEUE0=… .
set -uo pipefail
base=${BASE:-$HOME/rented} device=${DEVICE:-cuda} python=${PYTHON:-python3}
checkout=$base/checkout out=$base/out
mkdir -p "$out"
[ ! -f "$base/carried/env.sh" ] || source "$base/carried/env.sh"
export PYTHONPATH=$checkout:$base/carried/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
[ -z "${TRT_PYTHON:-}" ] || export ACCEL_BENCH_PYTHON_TENSORRT=$TRT_PYTHON
cache=${ACCEL_CACHE_DIR:-$HOME/.cache/accel-engines}
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
  unset PYTHONDONTWRITEBYTECODE
  export PYTHONPYCACHEPREFIX=$cache/bytecode
fi

compile_modes="compile: compile:+reduce-overhead compile:+freezing+reduce-overhead compile:+max-autotune"
rest="eager: eager:+fold eager:+graph eager:+fold+graph eager:+channels_last+fold+graph torchscript: onnxruntime: onnxruntime:+graph
  onnxruntime:+nhwc onnxruntime:+graph+nhwc aoti: aoti:+graph tensorrt: tensorrt:-graph"

# variants OPTION PRECISION NAME…: `eager:+fold` in fp16 becomes `OPTION eager:fp16+fold`.
variants() {
  local option=$1 precision=$2 name
  shift 2
  for name in "$@"; do printf '%s %s ' "$option" "${name/:/:$precision}"; done
}

accel() { "$python" -m accel "$@"; }

exported() { # one process for all: importing torch again for each file would take longer than most exports
  "$python" - "$device" "$1" ${2//+/ } <<'PYTHON'
import sys
from accel.cli import main

device, model, *formats = sys.argv[1:]
codes = [
    main(["export", model, "--to", kind, "--precision", precision, "--device", device, "--format", "csv"])
    for kind in formats
    for precision in ("fp32", "fp16")
]
sys.exit(max(codes))
PYTHON
}

task() {
  local kind model detail
  IFS=: read -r kind model detail <<<"$1"
  case $kind in
  await) until [ -e "$out/here.$model" ] || [ -e "$out/done.$model${detail:+:$detail}" ]; do sleep 0.5; done ;;
  bytecode)
    local folders
    folders=$("$python" -c 'import importlib.util as u
for name in ("torch", "triton", "sympy", "mpmath", "networkx"):
    if (found := u.find_spec(name)): print(found.submodule_search_locations[0])')
    "$python" -m compileall -q -j 0 $folders
    ;;
  export) exported "$model" "$detail" ;;
  trt)
    local level=LEVEL_$model
    timeout 300 "$TRT_PYTHON" -m accel export "engines/$model.accel" --to trt --precision "$detail" --device "$device" --format csv \
      ${!level:+--optimization-level ${!level}} ${TRT_OPTIONS:-}
    ;;
  reference) accel verify "$model" --variant eager:fp32 --device "$device" --format csv ;;
  compile) accel verify "$model" $(variants --variant "$detail" ${SHOWN_COMPILE:-$compile_modes}) --device "$device" --format csv ;;
  warm) accel verify "$model" $(variants --variant "$detail" ${SHOWN_COMPILE:-$compile_modes}) --force --device "$device" --format csv ;;
  rest) accel verify "$model" $(variants --variant "$detail" ${SHOWN:-$rest}) --device "$device" --format csv ;;
  tests) "$python" -m pytest -q -p no:cacheprovider -m gpu ${model:-tests} ;;
  *) echo "no such task" && return 2 ;;
  esac
}

# queue GPU TASK…: a failed task is noted and the next begins.
queue() {
  local gpu=$1 name began code
  shift
  for name in "$@"; do
    began=$SECONDS code=0
    CUDA_VISIBLE_DEVICES=$gpu task "$name" >"$out/$name.txt" 2>&1 </dev/null || code=$?
    echo "$((SECONDS - began)) s  GPU $gpu  $name  code $code" >>"$out/times.txt"
    touch "$out/done.$name"
  done
}

case ${1:?see the head of this file} in
begin)
  mkdir -p "$checkout" "$base/carried"
  cp -a "$3/." "$base/carried"
  tar -C "$2" --exclude=./.venv --exclude=./.gpu -cf - . | tar -xf - -C "$checkout"
  exec bash "$checkout/benchmarks/rented_gpu.sh" begun
  ;;
begun)
  cd "$checkout" || exit
  [ ! -d "$base/carried/weights" ] || cp -a "$base/carried/weights/." accel/trainers/weights/
  if [ -f "$base/carried/head.bundle" ]; then
    # The commit on record is to be the one that runs; what differs from it then makes the set dirty.
    git fetch -q "$base/carried/head.bundle" HEAD && git update-ref HEAD FETCH_HEAD && git reset -q --mixed
  fi
  git status --short | head -n 5
  mkdir -p "$cache"
  if [ -d "$base/carried/datasets" ]; then
    find "$base/carried/datasets" -name '*.xz' -exec xz -d {} +
    cp -a "$base/carried/datasets" "$cache/"
  fi
  setsid nohup bash "$checkout/benchmarks/rented_gpu.sh" queues >"$out/queues.txt" 2>&1 </dev/null &
  ;;
queues)
  cd "$checkout" || exit
  echo $$ >"$out/queues.pid"
  if [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -gt 1 ]; then
    queue 0 ${QUEUE0:-} &
    queue 1 ${QUEUE1:-} &
    wait
  else
    queue 0 ${QUEUE0:-} ${QUEUE1:-}
  fi
  touch "$out/queues.ended"
  ;;
take)
  mkdir -p "$base/taken" "$cache"
  cp "$2"/*.tar* "$base/taken/"
  if [ "${3:-}" = last ]; then
    [ ! -e "$base/taken/bundles.tar.00" ] || cat "$base"/taken/bundles.tar.* | tar xf - -C "$checkout"
    [ ! -e "$base/taken/caches.tar.xz.00" ] || cat "$base"/taken/caches.tar.xz.* | xz -dc -T0 | tar xf - -C "$cache"
    # They were exported by another account on another host, but ours: their plans and packages may be run.
    (cd "$checkout" && "$python" -c 'import sys
from accel.engines import Bundle, trust
for path in sys.argv[1:]: trust.record(Bundle.open(path))' engines/*.accel)
    touch "$out/here.taken"
  fi
  ;;
here)
  # A package that came with others may hide one of the host's and lack what it needs: every later task would fail at its import.
  if "$python" -c 'import accel.cli, onnxruntime, pynvml, rich, safetensors, torch, typer' 2>"$out/here.$2.error"; then
    touch "$out/here.$2"
  else
    echo "accel does not start with $2:" && tail -n 2 "$out/here.$2.error"
  fi
  ;;
wait)
  for _ in $(seq "$2"); do [ ! -e "$out/queues.ended" ] || break; sleep 1; done
  cat "$out/times.txt"
  [ -e "$out/queues.ended" ] || echo "not ended yet"
  ;;
stop) # the session that setsid made, by its number: a pattern would meet this very call
  [ ! -f "$out/queues.pid" ] || pkill -INT -s "$(cat "$out/queues.pid")"
  sleep 2
  [ ! -f "$out/queues.pid" ] || pkill -KILL -s "$(cat "$out/queues.pid")"
  true
  ;;
set)
  cd "$checkout" || exit
  model=$2 precision=$3 seconds=$4
  shift 4
  timeout -s INT -k 20 "$seconds" "$python" -m accel bench "$model" $(variants --runtime "$precision" ${SHOWN_COMPILE:-$compile_modes} ${SHOWN:-$rest}) \
    --device "$device" --out ../out/sets --iterations 500 --max-rounds 3 --format markdown "$@" >"$out/set-$model-$precision.txt" 2>&1
  echo "set $model $precision: code $? after $SECONDS s" | tee -a "$out/times.txt"
  tail -n 45 "$out/set-$model-$precision.txt" | cut -c1-200
  ;;
part)
  cd "$checkout" || exit
  PYTHON=$python DEADLINE=$3 bash benchmarks/gpu_evidence.sh "$out/evidence" "$2"
  tail -n 20 "$out/evidence/$2.txt" | cut -c1-250
  ;;
home)
  mkdir -p "$2"
  for bundle in "$checkout"/engines/*.accel; do
    for file in accel.json verified.json; do [ ! -f "$bundle/$file" ] || cp "$bundle/$file" "$out/$(basename "$bundle")-$file"; done
  done
  tar cJf "$2/out.tar.xz" -C "$base" out
  if [ -n "${3:-}" ] && ! ls "$base/home/$3".* >/dev/null 2>&1; then
    mkdir -p "$base/home"
    case $3 in
    caches) tar cf - -C "$cache" $(cd "$cache" && ls -d inductor triton tensorrt* aa-floors 2>/dev/null) | xz -T0 | split -b 15m -d - "$base/home/caches.tar.xz." ;;
    bundles) tar cf - -C "$checkout" engines | split -b 15m -d - "$base/home/bundles.tar." ;;
    esac
  fi
  if [ -n "${3:-}" ]; then
    ls "$base/home"
    ls "$base/home/$3".* | tail -n +$((4 * ${4:-0} + 1)) | head -n 4 | xargs -r cp -t "$2"
  fi
  ls -la "$2"
  ;;
*) echo "rented_gpu: no command $1; see the head of this file" >&2 && exit 2 ;;
esac
