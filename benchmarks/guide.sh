#!/usr/bin/env bash
# Run everything that docs/guides/fine-tune.md shows, and print it as it stands there: benchmarks/guide.sh [FOLDER]
# The adapter and the merged model are written into FOLDER, a new temporary one unless given. Needs the real model and data, which
# lie beside the checkout in shared/.
set -euo pipefail
. "$(dirname "$0")/../scripts/_env" core
HERE=${1:-$(mktemp -d)}
SHARED=$(cd "$ROOT/.." && pwd)/shared
mkdir -p "$HERE"
cd "$HERE"
ln -sfn "$SHARED/models/stories260K" stories260K
ln -sfn "$SHARED/data/e2e" e2e
PROMPT='name : The Punter | Type : restaurant | food : Indian | price : cheap'

show() {
    printf '$ %s\n' "$*"
    eval "${*/#inlay/\"\$PYTHON\" -m inlay}" 2>&1
    echo
}

show "inlay train stories260K e2e/train-1.jsonl --output restaurants --show-tokens 2"
show "inlay train stories260K e2e/train-1.jsonl --eval-data e2e/valid.jsonl --max-steps 300 --output restaurants"
show "inlay inspect restaurants"
show "inlay generate stories260K --adapter none --adapter restaurants --max-new-tokens 40 --prompt '$PROMPT'"
show "inlay eval stories260K e2e/test.jsonl --adapter restaurants --scores bleu"
show "inlay merge stories260K restaurants --output restaurants-merged --check-data e2e/valid.jsonl"
show "inlay generate restaurants-merged --max-new-tokens 40 --prompt '$PROMPT'"
