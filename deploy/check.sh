#!/usr/bin/env bash
# All that a change has to pass: ruff, mypy, the tests (the import rules are among them). Arguments are those of pytest.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

"$root/deploy/setup.sh" --dev
cd "$root"

failed=()
check() {
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

check "ruff check" "$venv/bin/python" -m ruff check .
check "ruff format" "$venv/bin/python" -m ruff format --check .
check "mypy" "$venv/bin/python" -m mypy
check "tests" "$root/deploy/test.sh" "$@"

if ((${#failed[@]})); then
    printf 'Failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
