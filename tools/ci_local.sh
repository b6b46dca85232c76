#!/bin/sh
# Runs what the workflows run, as far as a Linux machine can: the sessions of noxfile.py.
#
# Usage: tools/ci_local.sh [session ...]      none named: all those with a star in `nox -l`
# PYTHON (python3) comes from the environment.
set -eu
cd "$(dirname "$0")/.."

runner=.nox/runner
"${PYTHON:-python3}" -m venv "$runner"
"$runner/bin/python" -m pip install --quiet --upgrade pip
"$runner/bin/python" -m pip install --quiet --group nox
exec "$runner/bin/nox" ${1+--session} "$@"
