#!/bin/sh
# Test the kernels and layers that are compiled for AVX-512: directly if the processor supports it, otherwise
# in Intel's Software Development Emulator, which is downloaded.
#
# Usage: tools/avx512.sh [pytest option ...]
# Needs fastopt, pytest and hypothesis. Environment: PYTHON (default: python); EMULATE=1 forces the emulator.
set -eu
cd "$(dirname "$0")/.."

url=https://downloadmirror.intel.com/924984/sde-external-10.13.1-2026-07-28-lin.tar.xz
sum=94e97d623fec54385686e1e7ba65ebc9941748c05ee451423948334892bf2b50

python=${PYTHON:-python}
emulator=
if [ "${EMULATE:-}" ] ||
    ! "$python" -P -c "from fastopt._core import dispatch; exit('v4' not in dispatch.runnable())"; then
    sde=$(mktemp -d)
    trap 'rm -rf "$sde"' EXIT
    curl --fail --location --silent --show-error --retry 3 --output "$sde/sde.tar.xz" "$url"
    echo "$sum  $sde/sde.tar.xz" | sha256sum --check
    tar -xJf "$sde/sde.tar.xz" -C "$sde" --strip-components 1
    emulator="$sde/sde64 -skx --" # the first server processor with x86-64-v4
fi

FASTOPT_ISA=v4 $emulator "$python" -P -m pytest -k v4 "$@" \
    tests/core/test_rules.py tests/nn/test_layer_ops.py tests/nn/test_layers.py
