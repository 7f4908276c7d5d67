# Sourced by the other scripts: where the project and its environments are.
# shellcheck shell=bash disable=SC2034  # whoever sources this uses them

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

venv=${GATEWAY_VENV_DIR:-.venv}
[[ $venv == /* ]] || venv=$root/$venv
venv=${venv%/}
kernels_venv=$venv-kernels
