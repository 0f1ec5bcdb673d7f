#!/bin/sh
# Makes the virtual environment $1 with the interpreter $PYTHON, and says what is missing where it cannot.
set -eu
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "ModelOps Coordinator needs Python 3.11 or newer; '$python' is: $("$python" --version 2>&1 || true)." >&2
    echo "Name another one:  make PYTHON=python3.12 install" >&2
    exit 1
fi
if ! "$python" -m venv "$1"; then
    rm -rf "$1"
    echo "'$python' came without its venv module. On Debian and Ubuntu:  sudo apt install python3-venv" >&2
    exit 1
fi
