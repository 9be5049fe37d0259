#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build, test, sanitize, benchmark. Run it in the repository's root; results go to
# the folder named as the first argument (default: bench/results/<device>). Nothing is downloaded or installed. A step that
# fails does not stop the rest; the table at the end and the exit status tell.
#
#   PYTHON=python3 bench/device.sh [folder]
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

device=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null) \
  || { echo "bench/device.sh: torch sees no GPU here"; exit 2; }
out=${1:-bench/results/$(echo "$device" | tr -cs 'A-Za-z0-9\n' '_' | sed 's/_*$//')}
mkdir -p "$out"
table="$out/summary.txt"
: > "$table"
failed=0

# step <name> <seconds> <command...>: runs it under a time limit, keeps its log, notes how it ended.
step() {
  local name=$1 limit=$2 begin=$SECONDS code
  shift 2
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
  code=$?
  case $code in
    0) verdict=ok ;;
    124 | 137) verdict="FAILED (over ${limit} s)"; failed=1 ;;
    *) verdict="FAILED (exit $code)"; failed=1 ;;
  esac
  printf '%-14s %5d s  %s\n' "$name" $((SECONDS - begin)) "$verdict" | tee -a "$table"
  [ "$code" = 0 ] || tail -n 25 "$out/$name.log"
}

facts() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv || true
  nvcc --version | tail -n 2 || true
  "$PYTHON" - << 'END'
import torch
p = torch.cuda.get_device_properties(0)
print(f"{p.name}: sm_{p.major}{p.minor}, {p.multi_processor_count} multiprocessors, {p.total_memory >> 20} MiB")
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
END
}

# Only what this device runs, and the PTX for it: a third of the time.
arch=$("$PYTHON" -c 'import torch; print("{}{}".format(*torch.cuda.get_device_capability()))')
build() {
  SAMPLERS_NATIVE=1 SAMPLERS_CUDA=1 SAMPLERS_CUDA_ARCHS="${SAMPLERS_CUDA_ARCHS:-$arch}" \
    "$PYTHON" setup.py --quiet build_ext --inplace &&
    "$PYTHON" -c 'import samplers.ops as ops; s = ops.status(); print(s); assert s["native"] and s["cuda"]'
}
export -f facts build
export PYTHON arch

# pytest-benchmark may be absent: then its option in pyproject.toml is unknown, so the options are given here.
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= -p samplers.testing.plugin)
ops=()
for file in tests/test_*.py tests/*/test_*.py; do
  grep -lqE 'samplers\.ops|from samplers import ops|emulator' "$file" && [ "$file" != tests/ops/test_on_gpu.py ] && ops+=("$file")
done
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)

step facts 60 bash -c facts
step build 600 bash -c build
step gpu 600 "${pytest[@]}" tests/ops/test_on_gpu.py -rs
step memcheck 600 "$sanitizer" --tool memcheck --error-exitcode 1 "$PYTHON" bench/sanitize.py
step racecheck 600 "$sanitizer" --tool racecheck --error-exitcode 1 "$PYTHON" bench/sanitize.py
step bench 600 "$PYTHON" bench/gpu.py --json "$out/gpu.json"
step ops 900 "${pytest[@]}" "${ops[@]}"
step kit 900 "${pytest[@]}" --pyargs samplers.testing

echo
echo "$device, results in $out:"
cat "$table"
exit $failed
