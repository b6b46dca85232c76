#!/bin/sh
# Runs the C tests of the thread pool, and the Python tests of all that is compiled, under
# ThreadSanitizer, then under AddressSanitizer and UndefinedBehaviorSanitizer. Fails on the first
# report or failed check.
#
# Usage: tools/sanitize.sh [thread] [address]     the sanitizers to use; none named: both
# CC (gcc), CFLAGS (added last) and PYTHON (python3) come from the environment. Needs gcc on Linux and
# Python with setuptools, cython, numpy, pytest and hypothesis; an installed fastopt is not looked at.
set -eu

cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

CC=${CC:-gcc}
python=${PYTHON:-python3}
warnings="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
wrap="-DFO_WRAP_PTHREAD_CREATE -Wl,--wrap=pthread_create"
tests="tests/core/test_rules.py tests/core/test_engine.py tests/core/test_threads.py tests/optimizers/test_bad_input.py
    tests/optimizers/test_optimizers.py tests/optimizers/test_wrappers.py tests/optimizers/test_matrix.py tests/nn/test_mlp.py tests/nn/test_layers.py
    tests/core/test_sparse_rows.py"

export TSAN_OPTIONS="halt_on_error=1 exitcode=66 ${TSAN_OPTIONS:-}"
export UBSAN_OPTIONS="halt_on_error=1 print_stacktrace=1 ${UBSAN_OPTIONS:-}"
# The pool alone must free what it takes. Python's interpreter does not, by design.
leaks="detect_leaks=1 ${ASAN_OPTIONS:-}"
no_leaks="detect_leaks=0 ${ASAN_OPTIONS:-}"

# The sanitizers want their shadow at fixed addresses, where random ones may be in the way. A container
# may forbid to switch these off; then all depends on how random they are.
fixed="setarch $(uname -m) -R"
$fixed true 2>/dev/null || fixed=

# flags SANITIZERS. Python's own flags define what happens at an overflow, which would then go unseen.
flags() { echo "-g -fno-omit-frame-pointer -fsanitize=$1 -fno-sanitize-recover=all -fno-wrapv"; }

# check_pool SANITIZERS: once ending with the pool stopped, once leaving it alive.
check_pool() {
    printf '== pool under -fsanitize=%s\n' "$1"
    # shellcheck disable=SC2046,SC2086
    "$CC" -std=gnu11 -O1 $(flags "$1") $warnings $wrap ${CFLAGS:-} \
        tests/core/test_pool.c csrc/fo_pool.c -pthread -o "$build/test_pool"
    export ASAN_OPTIONS="$leaks"
    $fixed "$build/test_pool"
    $fixed "$build/test_pool" leave >"$build/log" || { cat "$build/log"; return 1; }
}

# check_modules SANITIZERS RUNTIME LEFT_OUT: build what setup.py builds, with its flags and these, and
# test it. The interpreter is not instrumented, so it has to load the sanitizer's runtime first.
check_modules() {
    printf '== compiled modules under -fsanitize=%s\n' "$1"
    CC=$CC CFLAGS="$(flags "$1") ${CFLAGS:-}" LDFLAGS="-fsanitize=$1 ${LDFLAGS:-}" \
        "$python" setup.py --quiet build --debug --build-base "$build/$2" --build-lib "$build/$2/lib"
    if grep -L "__${2#lib}_" "$build/$2"/lib/fastopt/_core/*.so "$build/$2"/lib/fastopt/nn/_core/*.so | grep .; then
        echo "not instrumented" >&2
        return 1
    fi
    # Reports go past pytest to the terminal. Memory comes from malloc, where each block has its own
    # bounds, and not from Python's arenas. Faults are the sanitizer's to report.
    # shellcheck disable=SC2086
    LD_PRELOAD=$("$CC" -print-file-name="$2.so") ASAN_OPTIONS=$no_leaks PYTHONMALLOC=malloc \
        PYTHONPATH=$build/$2/lib PYTHONSAFEPATH=1 FASTOPT_NUM_THREADS=3 OPENBLAS_NUM_THREADS=1 \
        $fixed "$python" -m pytest --quiet --capture=sys -p no:faulthandler -p no:cacheprovider \
        $tests -k "not ($3)"
}

# Left out: torch, whose runtimes of threads are none of ours; and a test of how much memory stays in
# use, as a sanitizer holds back what was freed. Under ThreadSanitizer also forks, after which it lets
# no thread start; and all instruction sets and dtypes but one: they share their source, and time matters.
left_out="with_torch or restarting_the_pool"

[ $# -gt 0 ] || set -- thread address
for name in "$@"; do
    case $name in
    thread)
        check_pool thread
        check_modules thread libtsan "$left_out or child or v3 or v4 or float64"
        ;;
    address)
        check_pool address,undefined
        check_modules address,undefined libasan "$left_out"
        ;;
    *) echo "unknown sanitizer: $name (thread, address)" >&2; exit 2 ;;
    esac
done
