#!/usr/bin/env bash
# Prints the newest Python (3.11 or later) that really starts and can make virtual environments with pip.
# PYTHON= names the one to take.
set -euo pipefail

usable() { # prints its path; a shim on the PATH may name a Python that isn't there
    "$1" -I -c '
import ctypes, ensurepip, sqlite3, ssl, sys, venv
ensurepip.version()
if sys.version_info < (3, 11): sys.exit(1)
print(sys.executable)' </dev/null 2>/dev/null
}

if [[ -n ${PYTHON:-} ]]; then
    usable "$PYTHON" && exit
    echo "PYTHON=$PYTHON is no Python 3.11 or later with venv, pip, ssl and sqlite3." >&2
    exit 1
fi

for name in python3.14 python3.13 python3.12 python3.11 python3 python; do
    usable "$name" && exit
done

echo "No usable Python found: version 3.11 or later, with venv, pip, ssl and sqlite3.
  Debian, Ubuntu:  apt-get install python3 python3-venv
  Fedora:          dnf install python3
  elsewhere:       https://www.python.org/downloads/
Or name one that is not on the PATH:  PYTHON=/path/to/python deploy/setup.sh" >&2
exit 1
