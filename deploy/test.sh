#!/usr/bin/env bash
# Sets up what is missing, then runs the tests. Arguments are those of pytest: deploy/test.sh -m "not slow" -k restart
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

"$root/deploy/setup.sh" --dev
cd "$root"
# Most tests wait for a kernel or a clock: two at once for each core. `-n 0` runs them one after another.
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
together=(-n "$((cores < 4 ? 2 * cores : 8))" --dist worksteal)
[[ ${CI:-} == true ]] || exec "$venv/bin/python" -m pytest "${together[@]}" "$@"

# A busy machine in CI may be too slow for one test of many: what failed is named above, and gets one more try, alone.
code=0
"$venv/bin/python" -m pytest "${together[@]}" "$@" || code=$?
((code == 1)) || exit "$code"
echo "== once more: what failed"
exec "$venv/bin/python" -m pytest --last-failed --last-failed-no-failures none "$@"
