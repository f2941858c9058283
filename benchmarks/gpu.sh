#!/usr/bin/env bash
# All that a CUDA device can check and measure of Inlay, in eight minutes: bash benchmarks/gpu.sh [FOLDER [PART ...]]
#
# With the Python that has torch for CUDA, transformers, peft, bitsandbytes, pytest and hypothesis: PYTHON=... bash benchmarks/gpu.sh
# FOLDER (gpu) gets gpu.json and gpu.md, after every part of them: see benchmarks/gpu.py.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
