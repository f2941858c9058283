#!/usr/bin/env bash
# Run everything that docs/guides/quantize.md shows, and print it as it stands there: benchmarks/guide_quantize.sh [FOLDER]
# Everything is written into FOLDER, a new temporary one unless given. The base is the one that ships with the package, and the
# data is what `scripts/demo` writes.
set -euo pipefail
. "$(dirname "$0")/../scripts/_env" core
HERE=${1:-$(mktemp -d)}
mkdir -p "$HERE"
cd "$HERE"
ln -sfn "$ROOT/src/inlay/cli/demo_base" demo_base
"$PYTHON" -m inlay demo --output demo > /dev/null 2>&1

show() {
    printf '$ %s\n' "$*"
    eval "${*/#inlay/\"\$PYTHON\" -m inlay}" 2>&1 || true
    echo
}

show "inlay quantize demo_base --keep down_proj --output demo-nf4"
show "inlay train demo-nf4 demo/tell-train.jsonl --max-steps 60 --output tell-nf4"
show "inlay merge demo-nf4 tell-nf4 --output tell-16"
show "inlay merge demo-nf4 tell-nf4 --output tell-4 --quantize nf4 --check-data demo/tell-train.jsonl"
