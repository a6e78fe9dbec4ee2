# Sourced by the commands in scripts/: finds a complete Python 3, installing the distribution's where there is
# none, and hands over to a module of scripts/lib. A fresh Debian has no Python at all.
# shellcheck shell=bash

# run_module MODULE [ARG...]: replaces this shell by the Python module.
run_module() {
    local lib python
    lib=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    # The distribution's own interpreter first: wrappers found on PATH cost more than all of ours.
    for python in /usr/bin/python3 "$(command -v python3)"; do
        if [ -x "$python" ] && "$python" -c 'import ctypes, json, lzma, zlib' 2>/dev/null; then
            exec "$python" -B "$lib/$1.py" "${@:2}"
        fi
    done
    if [ -n "${VIVARIUM_PYTHON_TRIED:-}" ]; then
        echo "python3: installed, yet it cannot import its standard library; reinstall the package python3" >&2
        exit 1
    fi
    install_python || exit 1
    VIVARIUM_PYTHON_TRIED=1 run_module "$@"
}

install_python() {
    local sudo=() log
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "python3 is missing: run this as root, or install sudo" >&2; return 1; }
        sudo=(sudo)
    fi
    command -v apt-get >/dev/null || { echo "python3 is missing, and this is not Debian or Ubuntu: install it by hand" >&2; return 1; }
    echo "installing python3"
    log=$(mktemp)
    if ! { "${sudo[@]}" apt-get update -q && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends python3; } \
        >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        echo "apt-get could not install python3" >&2
        return 1
    fi
    rm -f "$log"
}
