#!/usr/bin/env bash
# Makes the two environments, or brings them up to date: the gateway's (.venv) and the one that Python kernels run in
# (.venv-kernels). With --dev the gateway's also gets what tests and checks need.
#
# GATEWAY_VENV_DIR= puts them elsewhere; PYTHON= chooses the interpreter (else an environment keeps the one it has).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1

case "$*" in
"") dev=false ;;
--dev) dev=true ;;
*) echo "usage: $0 [--dev]" >&2 && exit 2 ;;
esac

# A stamp is written when a step is done, last: a step without its stamp, or with another one, is done again.
identity() { "$1" -I -c 'import sys; print(sys.base_prefix, sys.version)' 2>/dev/null; }

stamp() { # FOLDER FILE…
    local folder=$1
    shift
    { echo "$folder $root" && identity "$folder/bin/python" && cat -- "$@" "$root/deploy/setup.sh"; } | sha256sum
}

done_already() { # FOLDER STEP FILE…
    [[ -e $1/.done-$2 && $(<"$1/.done-$2") == "$(stamp "$1" "${@:3}")" ]] || return 1
    [[ -z ${PYTHON:-} || $(identity "$PYTHON") == "$(identity "$1/bin/python")" ]]
}

is_done() { # FOLDER STEP FILE…
    stamp "$1" "${@:3}" >"$1/.done-$2"
}

make_venv() { # FOLDER
    echo "Making $1 with $python"
    rm -f -- "$1"/.done-* # first, so that half a removal never looks whole
    rm -rf -- "$1"
    "$python" -I -m venv "$1"
}

install() { # FOLDER LOCK
    "$1/bin/python" -I -m pip install -qq --require-hashes -r "$2"
}

kernels_ready() { done_already "$kernels_venv" packages "$root/deploy/kernels.lock"; }
dev_ready() { done_already "$venv" dev "$root/deploy/dev.lock"; }
packages_ready() {
    done_already "$venv" packages "$root/deploy/gateway.lock" && { [[ ! -e $venv/.done-dev ]] || dev_ready; }
}
project_ready() { done_already "$venv" project "$root/pyproject.toml"; }
all_ready() { kernels_ready && packages_ready && project_ready && { ! $dev || dev_ready; }; }

all_ready && exit

if [[ -e $venv && ! -e $venv/pyvenv.cfg && ! -e $venv-lock && -n $(ls -A -- "$venv") ]]; then
    echo "$venv is there already and is no virtual environment: it would be removed." >&2
    exit 1
fi
mkdir -p -- "$(dirname -- "$venv")"
exec 9>"$venv-lock"
! command -v flock >/dev/null || flock 9 # another call may be at it

make_kernels_venv() {
    make_venv "$kernels_venv"
    install "$kernels_venv" "$root/deploy/kernels.lock"
    is_done "$kernels_venv" packages "$root/deploy/kernels.lock"
}

{ kernels_ready && packages_ready; } || python=$("$root/deploy/python.sh")

making=
if ! kernels_ready; then
    make_kernels_venv &
    making=$!
fi

if ! packages_ready; then
    make_venv "$venv"
    install "$venv" "$root/deploy/gateway.lock"
    is_done "$venv" packages "$root/deploy/gateway.lock"
fi

if $dev && ! dev_ready; then
    install "$venv" "$root/deploy/dev.lock"
    "$venv/bin/python" -I -m bash_kernel.install --prefix "$venv" >/dev/null
    is_done "$venv" dev "$root/deploy/dev.lock"
fi

[[ -z $making ]] || wait "$making"

if ! project_ready; then
    "$venv/bin/python" -I -m pip install -qq --no-deps --no-build-isolation -e "$root"
    # In place of the kernelspec that came with the gateway's own ipykernel: kernels don't see the gateway's packages.
    JUPYTER_PATH=$venv/share/jupyter "$kernels_venv/bin/python" -I -m ipykernel install --prefix "$venv" \
        --name python3 --display-name "Python 3" >/dev/null
    is_done "$venv" project "$root/pyproject.toml"
fi
