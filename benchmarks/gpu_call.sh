#!/usr/bin/env bash
# gpu_call_1.sh and gpu_call_2.sh come here: bash benchmarks/gpu_call.sh NUMBER [train] [options of benchmarks.gpu_day]
set -u
cd "$(dirname "$0")/.." || exit 1
export OUT="${OUT:-$PWD/build/gpu-day/out}"
log="build/gpu-day/logs/call-$1.txt"
mkdir -p "$OUT" build/gpu-day/logs
"${GPU_PYTHON:-python3}" -u -m benchmarks.gpu_call "$@" 2>&1 | tee "$log"
code="${PIPESTATUS[0]}"
# when not even this much worked, what was said comes back
ls "$OUT"/gpu-day.tar.gz* >/dev/null 2>&1 || cp "$log" "$OUT/"
exit "$code"
