#!/bin/sh
# Runs the tests of the kernels and layers on what is compiled for AVX-512: as it is where the processor
# has that, elsewhere under Intel's Software Development Emulator, which is downloaded.
#
# Usage: tools/avx512.sh [option of pytest ...]        with fastopt, pytest and hypothesis installed
# PYTHON (python) comes from the environment; EMULATE=1 takes the emulator in any case.
set -eu
cd "$(dirname "$0")/.."

url=https://downloadmirror.intel.com/924984/sde-external-10.13.1-2026-07-28-lin.tar.xz
sum=94e97d623fec54385686e1e7ba65ebc9941748c05ee451423948334892bf2b50

python=${PYTHON:-python}
emulator=
if [ "${EMULATE:-}" ] ||
    ! "$python" -P -c "from fastopt._core import dispatch; exit('v4' not in dispatch.runnable())"; then
    there=$(mktemp -d)
    trap 'rm -rf "$there"' EXIT
    curl --fail --location --silent --show-error --retry 3 --output "$there/sde.tar.xz" "$url"
    echo "$sum  $there/sde.tar.xz" | sha256sum --check
    tar -xJf "$there/sde.tar.xz" -C "$there" --strip-components 1
    emulator="$there/sde64 -skx --" # the first server processor that has x86-64-v4
fi

FASTOPT_ISA=v4 $emulator "$python" -P -m pytest -k v4 "$@" tests/core/test_rules.py tests/nn/test_layers.py
