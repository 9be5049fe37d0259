#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build, test, benchmark, sanitize. Nothing is downloaded or installed. A step that fails
# does not stop the rest; each step's result is written before the next begins.
#
#   PYTHON=python3 bench/device.sh [--budget SECONDS] [--rehearse] [folder]
#
# The folder (default: bench/results/<device>) gets three files: summary.txt, log.txt with the output of every step under its
# heading, and gpu.json. With --budget a step that needs more time than is left is dropped. With --rehearse all of it runs on the
# CPU, without nvcc and sanitizer, to try the scripts themselves.
#
# CUDA objects that were compiled elsewhere are used if they are in build/temp.<platform>-<python>/cuda-<architecture>, such as
# build/temp.linux-x86_64-cpython-312/cuda-90, together with the sums of what they were compiled from:
#
#   sha256sum setup.py csrc/*.h csrc/cuda/* > build/temp.linux-x86_64-cpython-312/cuda-90/sources.sha256
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

budget='' rehearse='' out=''
while [ $# -gt 0 ]; do
  case $1 in
    --budget) budget=${2:?--budget needs a number of seconds}; shift ;;
    --rehearse) rehearse=1 ;;
    -*) echo "bench/device.sh: unknown argument $1"; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
if [ "$rehearse" ]; then
  export SAMPLERS_REHEARSE=1
  device='rehearsal' arch='' at_once=1
else
  read -r arch device < <("$PYTHON" -c \
    'import torch; print("{}{}".format(*torch.cuda.get_device_capability()), torch.cuda.get_device_name())' 2> /dev/null) \
    || { echo "bench/device.sh: torch sees no GPU here"; exit 2; }
  at_once=8
fi
out=${out:-bench/results/$(echo "$device" | tr -cs 'A-Za-z0-9\n' '_' | sed 's/_*$//')}
mkdir -p "$out" || exit 2
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
: > "$out/summary.txt"
: > "$out/log.txt"
failed=0

say() { tee -a "$out/summary.txt"; }

# begin <name> <needs> <limit> <command...>: starts it in the background, under a time limit, if the budget allows what it needs.
begin() {
  local name=$1 needs=$2 limit=$3 left
  shift 3
  while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n; done
  if [ "$budget" ]; then
    left=$((budget - SECONDS))
    if [ "$left" -lt "$needs" ]; then
      echo "dropped: it needs $needs s, $left s are left" > "$work/$name.verdict"
      return
    fi
    [ "$left" -lt "$limit" ] && limit=$left
  fi
  (
    began=$SECONDS
    timeout --kill-after=5 "$limit" "$@" > "$work/$name.log" 2>&1 < /dev/null
    code=$?
    case $code in
      0) verdict=ok ;;
      124 | 137) verdict="FAILED: stopped after $limit s" ;;
      *) verdict="FAILED: exit status $code" ;;
    esac
    echo "$((SECONDS - began)) s, $verdict" > "$work/$name.verdict"
  ) &
}

# finish: waits for what was begun, and writes what came of it, in the order of the names.
finish() {
  local name verdict lines
  wait
  for name in "$@"; do
    verdict=$(cat "$work/$name.verdict")
    printf '%-18s %s\n' "$name" "$verdict" | say
    case $verdict in
      *FAILED*) failed=1 lines=200 ;;
      *) lines=40 ;;
    esac
    {
      echo "==== $name: $verdict"
      [ -e "$work/$name.log" ] && tail -n "$lines" "$work/$name.log" | cut -c1-2000
      echo
    } >> "$out/log.txt"
    case $verdict in *FAILED*) tail -n 15 "$work/$name.log" | cut -c1-300 ;; esac
  done
}

step() {
  begin "$@"
  finish "$1"
}

facts() {
  if [ -z "$SAMPLERS_REHEARSE" ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv
    nvcc --version | tail -n 2
  fi
  nproc
  "$PYTHON" - << 'END'
import sys

import torch

print(f"Python {sys.version}\ntorch {torch.__version__}, CUDA {torch.version.cuda}")
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(f"{p.name}: sm_{p.major}{p.minor}, {p.multi_processor_count} multiprocessors, {p.total_memory >> 20} MiB")
END
}

# Only what this device runs, and the PTX for it: a third of the time.
build() {
  local folder
  export SAMPLERS_NATIVE=1 SAMPLERS_CUDA=1 SAMPLERS_CUDA_ARCHS="${SAMPLERS_CUDA_ARCHS:-$arch}" MAX_JOBS="${MAX_JOBS:-$(nproc)}"
  for folder in build/temp.*/cuda-"${SAMPLERS_CUDA_ARCHS//;/-}"; do
    # Times do not survive every way of copying a folder, so objects of these very sources are made the newest.
    if [ -e "$folder/sources.sha256" ] && sha256sum --quiet -c "$folder/sources.sha256"; then
      echo "objects in $folder are of these sources"
      touch "$folder"/*
    fi
  done
  [ "$SAMPLERS_REHEARSE" ] || "$PYTHON" setup.py --quiet build_ext --inplace || return
  "$PYTHON" - << 'END'
import os

import samplers.ops as ops

print(ops.status())
assert ops.status()["native"]
assert ops.status()["cuda"] or os.environ["SAMPLERS_REHEARSE"]
END
}
export -f facts build
export PYTHON arch SAMPLERS_REHEARSE="${SAMPLERS_REHEARSE:-}"

# pytest-benchmark may be absent: then its option in pyproject.toml is unknown, so the options are given here.
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -o addopts= -p samplers.testing.plugin)
many=()
"$PYTHON" -c 'import xdist' 2> /dev/null && many=(-n "$(nproc)")
ops=()
for file in tests/test_*.py tests/*/test_*.py; do
  case $file in tests/ops/test_on_gpu.py | tests/ops/test_cuda_build.py) continue ;; esac
  grep -lqE 'samplers\.ops|from samplers import ops|emulator' "$file" && ops+=("$file")
done
# Calls of the CUDA library that only ask what there is fail by design, in torch's start: they are not reported.
sanitizer() {
  local tool=$1 program help option options=(--error-exitcode 1)
  if [ "$SAMPLERS_REHEARSE" ]; then
    "$PYTHON" bench/sanitize.py --rehearse
    return
  fi
  program=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  help=$("$program" --help 2>&1)
  for option in '--report-api-errors no' '--launch-timeout 0'; do  # not every version has both
    case $help in *"${option% *}"*) options+=($option) ;; esac
  done
  "$program" --tool "$tool" "${options[@]}" "$PYTHON" bench/sanitize.py
}
export -f sanitizer
for_trial=()
[ "$rehearse" ] && for_trial=(--rehearse)

#    name      needs limit
step facts        10    60 bash -c facts
step build        30   300 bash -c build

# A process for each class of tests: what one of them breaks on the device, the others do not see.
gpu_tests=tests/ops/test_on_gpu.py
names=()
for class in $(sed -n 's/^class \(Test[A-Za-z]*\).*/\1/p' "$gpu_tests"); do
  names+=("gpu-${class#Test}")
  begin "gpu-${class#Test}" 20 120 env OMP_NUM_THREADS=2 "${pytest[@]}" -rs "$gpu_tests::$class"
done
finish "${names[@]}"

step bench        60   120 "$PYTHON" bench/gpu.py --json "$out/gpu.json" --seconds 75 "${for_trial[@]}"
begin visits      20    60 "$PYTHON" bench/sanitize.py --names "${for_trial[@]}"
begin memcheck    40   120 bash -c 'sanitizer memcheck'
begin racecheck   40   120 bash -c 'sanitizer racecheck'
finish visits memcheck racecheck
step ops         120   900 "${pytest[@]}" "${many[@]}" "${ops[@]}"
step kit         120   900 "${pytest[@]}" "${many[@]}" --pyargs samplers.testing

echo "$device: $SECONDS s in all" | say
exit $failed
