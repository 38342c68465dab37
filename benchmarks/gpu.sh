#!/usr/bin/env bash
# What is to be done on a machine with an NVIDIA GPU: tests, tuning, benchmarks of the operator, of a model and of
# training, the sanitizer on small kernels. In an order that makes what is done first whole in itself: tests, then float16
# tuned and measured, which is meant to take ten minutes, of half an hour in all. (Not run on a GPU yet.)
#
#   make gpu                                   # in this checkout's own environment
#   PYTHON=python3 OUT=results benchmarks/gpu.sh   # in one that has torch, TVM and what else the steps import
#
# Each step writes to OUT as it goes, and is not repeated once it has passed; tuning and the benchmarks go on where they
# were. A step that fails does not keep the next from running, and fails the whole at the end. Kernels are built into
# TVM_NA_CACHE_DIR (OUT/kernels). Of the package's dependencies, platformdirs and those of `serve` are not needed.
#
# ARCHIVE=FILE packs OUT, but for its kernels, into FILE after every step: for machines that give back few files, or stop
# a command at its time limit. Unpacked into OUT on another machine, the next run goes on from there.
#
# Tuning takes TUNING_MINUTES (4): NAT-Tiny's four stages at 224x224, a third each for float16, for training in float16
# and for float32. Records go to OUT/tuning_logs/<target>, such as cuda-sm_90, ready to be put into tuning_logs/ of this
# checkout, and the benchmarks run with them. To tune further, remove OUT/tuning-*.passed, and the benchmarks' .passed and
# .json with them.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
out="${OUT:-build/gpu}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
seconds="$((${TUNING_MINUTES:-4} * 20))" # for each of three
failed=()

step() { # name, command...
  local name="$1"
  shift
  if [ -e "$out/$name.passed" ]; then
    echo "== $name: passed before"
    return
  fi
  echo "== $name: $*"
  if "$@" 2>&1 | tee "$out/$name.log"; then
    touch "$out/$name.passed"
  else
    failed+=("$name")
  fi
  if [ -n "${ARCHIVE:-}" ]; then
    tar -czf "$ARCHIVE.part" -C "$out" --exclude=./kernels . && mv "$ARCHIVE.part" "$ARCHIVE"
  fi
}

tune() { # step, arguments
  step "$1" "$python" -m tvm_na tune nat_tiny --target cuda "${@:2}" --trials 100000 --time-limit "${seconds}s"
}

if ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"; then
  echo "required an NVIDIA GPU with its driver, got none" >&2
  exit 2
fi
export TVM_NA_CACHE_DIR="${TVM_NA_CACHE_DIR:-$out/kernels}"
export TVM_NA_RECORDS_DIR="$out/tuning_logs"
# Only files with such tests: others import what a machine with a GPU may lack.
mapfile -t tests < <(grep -lE 'mark\.gpu|def test_gpu' -r tests --include='test_*.py')
# Most of their time is that of compilers, so they run beside each other; what is timed runs alone.
workers=()
if "$python" -c "import xdist" 2> /dev/null; then workers=(-n "$(($(nproc) / 2 + 1))"); fi
step tests "$python" -m pytest -m gpu -p no:cacheprovider "${tests[@]}" -k "not cost_the_host" "${workers[@]}"
step overhead "$python" -m pytest -m gpu -p no:cacheprovider tests/ops/test_cuda_launch.py -k "cost_the_host"
tune tuning-float16 --dtype float16
step benchmark-float16 "$python" -m benchmarks.op --device cuda --dtype float16 --output "$out/op.json"
step model "$python" -m benchmarks.model --device cuda --output "$out/model.json"
tune tuning-training --training --dtype float16
step training "$python" -m benchmarks.training --device cuda --output "$out/training.json"
tune tuning-float32 --dtype float32
step benchmark-float32 "$python" -m benchmarks.op --device cuda --dtype float32 --output "$out/op.json"
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest -m gpu -p no:cacheprovider "${tests[@]}" \
      -k "is_right or every_rank or points_are_right or points_of_gradients or (gradients_are_right and float32)"
  done
else
  echo "== sanitizer: left out, there is no compute-sanitizer on PATH"
fi

if [ "${#failed[@]}" -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
