#!/bin/sh
# Run the nox sessions of the workflows, as far as a Linux machine can.
#
# Usage: tools/ci_local.sh [session ...]      default: the sessions with a star in `nox -l`
# Environment: PYTHON (default: python3).
set -eu
cd "$(dirname "$0")/.."

runner=.nox/runner
"${PYTHON:-python3}" -m venv "$runner"
"$runner/bin/python" -m pip install --quiet --upgrade pip
"$runner/bin/python" -m pip install --quiet --group nox
exec "$runner/bin/nox" ${1+--session} "$@"
