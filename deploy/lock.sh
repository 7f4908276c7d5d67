#!/usr/bin/env bash
# Writes the lock files anew from pyproject.toml, for all platforms and Python 3.11 or later; pins stay where they can.
# usage: lock.sh [--upgrade | --upgrade-package NAME | …]: further arguments go to `uv pip compile`
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

# shellcheck disable=SC2086  # none is set, or several are
unset ${!UV_@} # indexes and caches of this machine have no place in a lock
if ! uv=$(command -v uv); then
    tools=$(mktemp -d)
    trap 'rm -rf -- "$tools"' EXIT
    "$("$root/deploy/python.sh")" -I -m venv "$tools"
    "$tools/bin/python" -I -m pip install -qq uv
    uv=$tools/bin/uv
fi

compile() {
    "$uv" pip compile --quiet --no-config --default-index https://pypi.org/simple --universal --python-version 3.11 \
        --generate-hashes --custom-compile-command deploy/lock.sh "$@"
}

compile pyproject.toml --group build -o deploy/gateway.lock "$@"
compile pyproject.toml --group build --group dev -c deploy/gateway.lock -o deploy/dev.lock "$@"
compile --group kernels -o deploy/kernels.lock "$@"
