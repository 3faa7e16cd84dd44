#!/usr/bin/env bash
# The first call on a lent GPU machine, in the folder of the checkout: bash benchmarks/gpu_call_1.sh [train] [options]
# What it leaves in $OUT comes back: one archive and its summary. See CONTRIBUTING.md, "On a GPU".
cd "$(dirname "$0")/.." || exit 1
exec bash benchmarks/gpu_call.sh 1 "$@"
