#!/usr/bin/env bash
# Sets up what is missing, then serves. Arguments are those of `gateway serve`.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

"$root/deploy/setup.sh" >&2 # stdout is the gateway's: its first line says where it listens
exec "$venv/bin/gateway" serve "$@"
