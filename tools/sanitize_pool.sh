#!/bin/sh
# Builds and runs the C tests of the thread pool under ThreadSanitizer, then under AddressSanitizer
# (with its leak check) and UndefinedBehaviorSanitizer. Fails on the first report or failed check.
#
# Usage: tools/sanitize_pool.sh [thread] [address]     the sanitizers to use; none named: both
# CC (gcc) and CFLAGS (added last) come from the environment.
set -eu

cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

warnings="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
wrap="-DFO_WRAP_PTHREAD_CREATE -Wl,--wrap=pthread_create"

export TSAN_OPTIONS="halt_on_error=1 exitcode=66 ${TSAN_OPTIONS:-}"
export ASAN_OPTIONS="detect_leaks=1 ${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="halt_on_error=1 print_stacktrace=1 ${UBSAN_OPTIONS:-}"

# check_pool SANITIZERS: once ending with the pool stopped, once leaving it alive.
check_pool() {
    printf '== pool under -fsanitize=%s\n' "$1"
    # shellcheck disable=SC2086
    "${CC:-gcc}" -std=gnu11 -O1 -g -fno-omit-frame-pointer -fsanitize="$1" \
        -fno-sanitize-recover=all $warnings $wrap ${CFLAGS:-} \
        tests/c/test_pool.c csrc/fo_pool.c -pthread -o "$build/test_pool"
    "$build/test_pool"
    "$build/test_pool" leave >"$build/log" || { cat "$build/log"; return 1; }
}

for name in ${*:-thread address}; do
    case $name in
    thread) check_pool thread ;;
    address) check_pool address,undefined ;;
    *) echo "unknown sanitizer: $name (thread, address)" >&2; exit 2 ;;
    esac
done
