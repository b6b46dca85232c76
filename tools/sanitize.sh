#!/bin/sh
# Run the C tests of the thread pool and the Python tests of the compiled modules under ThreadSanitizer, and
# at the same time under AddressSanitizer and UndefinedBehaviorSanitizer. Fail at the first report or failed test.
#
# Usage: tools/sanitize.sh [thread] [address]     default: both
# Environment: CC (default: gcc), CFLAGS (added last), PYTHON (default: python3). Needs gcc on Linux, and Python
# with setuptools, cython, numpy, pytest and hypothesis. An installed fastopt is not used.
set -eu

cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

CC=${CC:-gcc}
python=${PYTHON:-python3}
warnings="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
wrap="-DFO_WRAP_PTHREAD_CREATE -Wl,--wrap=pthread_create"
# Tests in which several threads run compiled code, and further ones for the other sanitizers.
tests="tests/core/test_engine.py tests/core/test_rows_argument.py tests/core/test_rowwise_adagrad.py
    tests/core/test_sparse_rows.py tests/core/test_threads.py tests/nn/test_layer_ops.py tests/nn/test_layers.py
    tests/nn/test_mlp.py tests/nn/test_mlp_training.py tests/optimizers/test_matrix.py
    tests/optimizers/test_optimizers.py tests/optimizers/test_options.py"
more_tests="tests/apps/test_functional.py tests/core/test_rules.py tests/nn/test_mlp_errors.py
    tests/nn/test_mlp_files.py tests/optimizers/test_bad_input.py tests/optimizers/test_changed_arrays.py
    tests/optimizers/test_containers.py tests/optimizers/test_grad_dtypes.py"

export TSAN_OPTIONS="halt_on_error=1 exitcode=66 ${TSAN_OPTIONS:-}"
export UBSAN_OPTIONS="halt_on_error=1 print_stacktrace=1 ${UBSAN_OPTIONS:-}"
# Only the pool is checked for leaks. The Python interpreter does not free everything, by design.
leaks="detect_leaks=1 ${ASAN_OPTIONS:-}"
no_leaks="detect_leaks=0 ${ASAN_OPTIONS:-}"

# All instruction sets share their source code, so one is enough.
export FASTOPT_ISAS=base

# The sanitizers map their shadow memory at fixed addresses, which address space randomization may occupy. A
# container may forbid to disable it; the sanitizers then usually work, but not always.
fixed="setarch $(uname -m) -R"
$fixed true 2>/dev/null || fixed=

# flags SANITIZERS: print compiler flags. Python's -fwrapv defines integer overflow, which would hide it.
flags() { echo "-g -fno-omit-frame-pointer -fsanitize=$1 -fno-sanitize-recover=all -fno-wrapv"; }

# check_pool SANITIZERS: test the pool twice, stopping it before exit and leaving it alive.
check_pool() {
    printf '== pool under -fsanitize=%s\n' "$1"
    # shellcheck disable=SC2046,SC2086
    "$CC" -std=gnu11 -O1 $(flags "$1") $warnings $wrap ${CFLAGS:-} \
        tests/core/test_pool.c csrc/fo_pool.c -pthread -o "$build/test_pool_$1"
    export ASAN_OPTIONS="$leaks"
    $fixed "$build/test_pool_$1"
    $fixed "$build/test_pool_$1" leave >"$build/leave_$1.log" || { cat "$build/leave_$1.log"; return 1; }
}

# check_modules SANITIZERS RUNTIME DESELECTED TESTS: build the modules with sanitizers, and test them. The
# interpreter is not instrumented, so it has to load the runtime of the sanitizers first.
check_modules() {
    printf '== compiled modules under -fsanitize=%s\n' "$1"
    CC=$CC CFLAGS="$(flags "$1") ${CFLAGS:-}" LDFLAGS="-fsanitize=$1 ${LDFLAGS:-}" \
        "$python" setup.py --quiet build --debug --build-base "$build/$2" --build-lib "$build/$2/lib"
    if grep -L "__${2#lib}_" "$build/$2"/lib/fastopt/_core/*.so "$build/$2"/lib/fastopt/nn/_core/*.so | grep .; then
        echo "not instrumented" >&2
        return 1
    fi
    # Reports bypass pytest's capturing. Memory comes from malloc, which has bounds for every block, instead of
    # from Python's arenas. The sanitizer reports faults, not Python's fault handler.
    # shellcheck disable=SC2086
    LD_PRELOAD=$("$CC" -print-file-name="$2.so") ASAN_OPTIONS=$no_leaks PYTHONMALLOC=malloc \
        PYTHONPATH=$build/$2/lib PYTHONSAFEPATH=1 FASTOPT_NUM_THREADS=3 OPENBLAS_NUM_THREADS=1 \
        $fixed "$python" -m pytest --quiet --capture=sys -p no:faulthandler -p no:cacheprovider \
        $4 -k "not ($3)"
}

# Deselected: torch, which has thread pools of its own; tests of memory usage, as sanitizers delay freeing; and
# tests of combinations of options or of long runs, which run the same compiled code many times.
# For ThreadSanitizer also forks, after which it starts no threads; and float64, which shares its source code
# with float32, to save time. For the others, tests of the number of threads.
deselected="with_torch or restarting_the_pool or resumed_run or group_added_late or without_a_gradient"
deselected="$deselected or memory_of_predict or long_gaps or full_log"

run() {
    case $1 in
    thread)
        check_pool thread
        check_modules thread libtsan "$deselected or child or float64" "$tests"
        ;;
    address)
        check_pool address,undefined
        check_modules address,undefined libasan "$deselected or any_number_of_threads" "$tests $more_tests"
        ;;
    esac
}

[ $# -gt 0 ] || set -- thread address
pids=
for name in "$@"; do
    case $name in
    thread | address) ;;
    *) echo "unknown sanitizer: $name (thread, address)" >&2; exit 2 ;;
    esac
    run "$name" >"$build/$name.log" 2>&1 &
    pids="$pids $!"
done
failed=0
for pid in $pids; do
    wait "$pid" || failed=1
done
for name in "$@"; do
    cat "$build/$name.log"
done
exit "$failed"
