#!/bin/sh
# Test the compiled modules on another platform: on a processor that qemu emulates, under Wine, or with another C
# library. Results must match tests/hashes.json bit for bit. Targets are
#   x86_64-v2   x86-64 without AVX (Nehalem), where only the base build may be imported
#   aarch64     Linux with glibc
#   musl        Linux with musl on this processor, which is x86-64
#   windows     Windows on x86-64; the output must be a terminal or a pipe, not a file
# All but the first are cross-compiled by tools/cross.py and run in a Python from tools/foreign_python.py.
#
# Usage: tools/emulate.sh TARGET [pytest argument ...]      default: tests of the compiled modules
# Environment: PYTHON (default: python3), with pip and the dependency groups `build` and `cross`; for x86_64-v2 also
# numpy, pytest and hypothesis. WORK: a folder that keeps what is compiled (default: build/cross). SYSROOT: a folder
# with the C library for aarch64 (default: /). LOADER: the loader of musl with its options, if programs do not find it.
# Needs packages of Debian or Ubuntu: qemu-user-static or qemu-user; for aarch64 also libstdc++6:arm64 and
# zlib1g:arm64; for windows wine64 and wine; for musl at least version 1.2.5 of musl, and zlib's libz.so.1 for musl,
# which Debian does not have: LOADER="/lib/ld-musl-x86_64.so.1 --library-path FOLDER".
set -eu

cd "$(dirname "$0")/.."
target=${1:?"x86_64-v2, aarch64, musl or windows"}
shift
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

python=${PYTHON:-python3}
work=${WORK:-build/cross}
tests="tests/core/test_engine.py tests/core/test_formats.py tests/core/test_hashes.py tests/core/test_master_weights.py
    tests/core/test_math.py tests/core/test_numbers.py tests/core/test_rows_argument.py tests/core/test_rules.py
    tests/core/test_rowwise_adagrad.py tests/core/test_sparse_rows.py tests/core/test_state_formats.py
    tests/core/test_threads.py tests/nn/test_layer_ops.py tests/nn/test_layers.py tests/test_package.py"

# qemu PROCESSOR: print the path of its emulator.
qemu() { command -v "qemu-$1-static" || command -v "qemu-$1"; }

# wrap COMMAND: create a script that is the Python of tests, so that interpreters started by them are emulated, too.
wrap() {
    mkdir -p "$build/env/bin"
    printf '#!/bin/sh\nPYTHONEXECUTABLE="%s" exec %s "$@"\n' "$build/env/bin/python" "$1" >"$build/env/bin/python"
    chmod +x "$build/env/bin/python"
}

# foreign NAME RUNNER: cross-compile for a target of tools/cross.py, and run its Python with a program.
foreign() {
    printf '== compiled modules for %s\n' "$1"
    "$python" tools/cross.py -o "$work" "$1"
    "$python" setup.py --quiet build_py --build-lib "$build/lib"
    cp -R "$work/$1/fastopt" "$build/lib"
    printf '== Python for %s\n' "$1"
    program=$("$python" tools/foreign_python.py "$1" "$build/foreign" | tail -n 1)
    packages=$build/foreign/packages
    wrap "$2 $program"
}

case $target in
x86_64-v2)
    printf '== compiled modules for %s\n' "$target"
    "$python" setup.py --quiet build --build-base "$build/temp" --build-lib "$build/lib"
    base=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    packages=$("$python" -c 'import numpy, os; print(os.path.dirname(os.path.dirname(numpy.__file__)))')
    wrap "$(qemu x86_64) -cpu Nehalem -0 \"\$0\" $base"
    echo "home = $(dirname "$base")" >"$build/env/pyvenv.cfg"
    ;;
aarch64) foreign glibc-aarch64 "$(qemu aarch64) -L ${SYSROOT:-/}" ;;
musl) foreign musl-x86_64 "${LOADER:-}" ;;
windows) foreign win-amd64 "env -u PYTHONEXECUTABLE $(command -v wine)" ;; # Wine finds the interpreter itself
*) echo "unknown target: $target (x86_64-v2, aarch64, musl, windows)" >&2; exit 2 ;;
esac

printf '== tests\n'
separator=:
[ "$target" != windows ] || separator=\;
omitted=
case $target in
x86_64-v2 | aarch64) # qemu keeps memory for each thread that has ended
    omitted=tests/core/test_threads.py::test_restarting_the_pool_leaks_nothing ;;
esac
export PYTHONPATH="$build/lib$separator$packages" PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
export WINEPREFIX="$build/wine" WINEDEBUG=-all
: | "$build/env/bin/python" -c '
import platform, sys, numpy, fastopt
from fastopt._core import dispatch
wide = [name for name in sys.modules if name.startswith("fastopt.") and name.endswith(("_v3", "_v4"))]
print(platform.platform(), platform.machine(), "Python", platform.python_version(), "NumPy", numpy.__version__)
print(dispatch.runnable(), dispatch.isa)
emulated = sys.argv[1] in ("x86_64-v2", "aarch64")
sys.exit(emulated and (dispatch.runnable() != ["base"] or wide != []))' "$target"
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $tests
: | "$build/env/bin/python" -m pytest -q -rs -p no:cacheprovider ${omitted:+--deselect "$omitted"} "$@" # Wine needs a pipe as standard input
