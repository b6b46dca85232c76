#!/bin/sh
# Build the compiled modules for another processor and test them in qemu's user-mode emulation. Targets are
# x86-64 without AVX (Nehalem), where only the base build may be imported; and aarch64, cross-compiled for
# Debian's Python. Results must match tests/hashes.json bit for bit.
#
# Usage: tools/emulate.sh x86_64-v2 | aarch64 [pytest argument ...]      default: tests of the compiled modules
# Environment: PYTHON (default: python3), with setuptools and cython; for x86_64-v2, which needs an x86-64
# machine, also numpy, pytest and hypothesis; for aarch64 also pip. ROOT: a folder that keeps Debian's files for
# the next call (default: a temporary one).
# Needs qemu-user-static or qemu-user of Debian or Ubuntu; for aarch64 also gcc-aarch64-linux-gnu, debootstrap
# and root privileges.
set -eu

cd "$(dirname "$0")/.."
target=${1:?"x86_64-v2 or aarch64"}
shift
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

python=${PYTHON:-python3}
suite=bookworm
root=${ROOT:-$build/root}
tests="tests/core/test_engine.py tests/core/test_hashes.py tests/core/test_math.py tests/core/test_rules.py
    tests/core/test_threads.py tests/nn/test_layer_ops.py tests/nn/test_layers.py tests/test_package.py"

# compile NAME=VALUE...: compile all modules into $build/lib, with these environment variables.
compile() {
    printf '== compiled modules for %s\n' "$target"
    env "$@" "$python" setup.py --quiet build --build-base "$build/temp" --build-lib "$build/lib"
}

# qemu PROCESSOR: print the path of its emulator.
qemu() { command -v "qemu-$1-static" || command -v "qemu-$1"; }

# wrap HOME COMMAND: create a virtual environment whose Python is a script, so that interpreters started by tests
# are emulated, too.
wrap() {
    mkdir -p "$build/env/bin"
    echo "home = $1" >"$build/env/pyvenv.cfg"
    printf '#!/bin/sh\nexec %s "$@"\n' "$2" >"$build/env/bin/python"
    chmod +x "$build/env/bin/python"
}

case $target in
x86_64-v2)
    compile
    base=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    packages=$("$python" -c 'import numpy, os; print(os.path.dirname(os.path.dirname(numpy.__file__)))')
    wrap "$(dirname "$base")" "$(qemu x86_64) -cpu Nehalem -0 \"\$0\" $base"
    ;;
aarch64)
    printf '== Debian %s for aarch64\n' "$suite"
    if [ ! -e "$root/usr/bin/python3" ]; then
        mkdir -p "$root"
        debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,libpython3-dev "$suite" "$root" \
            >"$build/log" || { cat "$build/log"; exit 1; }
        for package in "$root"/var/cache/apt/archives/*.deb; do
            dpkg-deb --extract "$package" "$root"
        done
    fi
    name=$(basename "$(readlink "$root/usr/bin/python3")")
    packages=$build/packages
    "$python" -m pip install --quiet --target "$packages" --python-version "${name#python}" \
        --only-binary :all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux2014_aarch64 numpy pytest hypothesis
    gcc=aarch64-linux-gnu-gcc
    compile CC=$gcc LDSHARED="$gcc -shared" _PYTHON_HOST_PLATFORM=linux-aarch64 \
        CFLAGS="-I$root/usr/include/$name -idirafter $root/usr/include"
    wrap /usr/bin "$(qemu aarch64) -L $root -0 \"\$0\" $root/usr/bin/$name"
    ;;
*) echo "unknown processor: $target (x86_64-v2, aarch64)" >&2; exit 2 ;;
esac

printf '== tests\n'
export PYTHONPATH="$build/lib:$packages" PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
"$build/env/bin/python" -c '
import platform, sys, numpy, fastopt
from fastopt._core import dispatch
wide = [name for name in sys.modules if name.startswith("fastopt.") and name.endswith(("_v3", "_v4"))]
print(platform.machine(), "Python", platform.python_version(), "NumPy", numpy.__version__, dispatch.runnable())
sys.exit(dispatch.runnable() != ["base"] or wide != [])'
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $tests
"$build/env/bin/python" -m pytest -q -rs -p no:cacheprovider "$@"
