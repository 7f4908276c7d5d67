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
told=$(mktemp)
trap 'rm -f -- "$told"' EXIT
"$venv/bin/python" -m pytest "${together[@]}" "$@" | tee "$told" || code=$?
((code == 1)) || exit "$code"
# A part of a test that fails (a subtest) is counted, but not remembered: it would not be tried again.
failed=$(grep -oE '[0-9]+ failed' "$told" | tail -n 1 || true)
remembered=$(grep -c '::' .pytest_cache/v/cache/lastfailed || true)
((${failed%% *} + 0 <= remembered + 0)) || exit "$code"
echo "== once more: what failed"
"$venv/bin/python" -m pytest --last-failed --last-failed-no-failures none "$@"
