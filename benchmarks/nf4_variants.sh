#!/usr/bin/env bash
# Every variant of src/inlay/kernels/nf4.c against the plain one, whatever this machine is: bash benchmarks/nf4_variants.sh [JOBS]
#
# The variants of this processor as they are, with undefined behaviour caught; AVX-512 with SIMDe's functions in the place of its
# instructions, and the real thing compiled; NEON in an emulator of 64-bit ARM. What cannot be had here is said to be left out.
# Debian, Ubuntu: apt-get install libsimde-dev gcc-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")"
jobs=${1:-3000}
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
flags=(-O3 -ffp-contract=off -Wall -Wextra)

echo "== $(uname -m)"
cc "${flags[@]}" -fsanitize=undefined -fno-sanitize-recover=all -o "$built/own" nf4_variants.c -lm
"$built/own" "$jobs"

echo "== x86-64 with AVX-512 by SIMDe"
if [ "$(uname -m)" = x86_64 ] && [ -e /usr/include/simde/x86/avx512.h ]; then
    cc -O2 -ffp-contract=off -w -Wno-psabi -DINLAY_SIMDE -mavx2 -mfma -mf16c -o "$built/simde" nf4_variants.c -lm
    "$built/simde" "$jobs"
else
    echo "left out: needs libsimde-dev, and an x86-64 processor with AVX2"
fi

echo "== aarch64 by qemu"
if command -v aarch64-linux-gnu-gcc qemu-aarch64 > /dev/null; then
    aarch64-linux-gnu-gcc "${flags[@]}" -static -o "$built/arm" nf4_variants.c -lm
    qemu-aarch64 "$built/arm" "$jobs"
else
    echo "left out: needs gcc-aarch64-linux-gnu and qemu-user"
fi
