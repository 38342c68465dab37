#!/usr/bin/env bash
# What is to be done on a machine with an NVIDIA GPU: tests, the sanitizer on small kernels, tuning, benchmarks of the
# operator and of a model. About ten minutes.
#
#   make gpu                                   # in this checkout's own environment
#   PYTHON=python3 OUT=results benchmarks/gpu.sh   # in one that has torch, TVM and the package's other dependencies
#
# Each step writes to OUT as it goes, and is not repeated once it has passed; tuning and the benchmark go on where they
# were. A step that fails does not keep the next from running, and fails the whole at the end.
#
# Tuning takes TUNING_MINUTES (4), half of them for float16 and half for float32, of NAT-Tiny's four stages at 224x224.
# Its records go to OUT/tuning_logs/<target>, such as cuda-sm_90, ready to be put into tuning_logs/ of this checkout, and
# the benchmark runs with them. To tune further, remove OUT/tuning-*.passed and OUT/benchmark.passed with OUT/cuda.json.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
out="${OUT:-build/gpu}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
seconds="$((${TUNING_MINUTES:-4} * 30))" # for each of two data types
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
}

if ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"; then
  echo "required an NVIDIA GPU with its driver, got none" >&2
  exit 2
fi
step tests "$python" -m pytest -m gpu -p no:cacheprovider
if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      "$python" -m pytest -m gpu -p no:cacheprovider -k "is_right or every_rank"
  done
else
  echo "== sanitizer: left out, there is no compute-sanitizer on PATH"
fi
export TVM_NA_RECORDS_DIR="$out/tuning_logs"
for dtype in float16 float32; do
  step "tuning-$dtype" "$python" -m tvm_na tune nat_tiny --target cuda --dtype "$dtype" \
    --trials 100000 --time-limit "${seconds}s"
done
step benchmark "$python" -m benchmarks.cuda --output "$out/cuda.json"
step model "$python" -m benchmarks.cuda_model --output "$out/cuda_model.json"

if [ "${#failed[@]}" -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
