#!/usr/bin/env bash
# Sets up what is missing, then runs the tests. Arguments are those of pytest: deploy/test.sh -m "not slow" -k restart
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

"$root/deploy/setup.sh" --dev
cd "$root"
exec "$venv/bin/python" -m pytest "$@"
