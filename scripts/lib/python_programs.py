"""Programs from PyPI, each in a virtual environment of its own in the cache."""

import os
import subprocess
import sys

import packages
from places import cache, lock
from report import Failure, tail

# What this machine trusts, pip shall trust too: it may bring a list of its own.
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


class Unavailable(Exception):
    """Why a program cannot be had here."""


def ensure(name, version, command):
    """The path of `command`, which the package `name` has; installed when missing."""
    folder = cache("tools") / f"{name}-{version}"
    program = folder / "bin" / command
    with lock(name):
        if not program.exists():
            _install(folder, f"{name}=={version}")
    return program


def _install(folder, wanted):
    try:
        packages.ensure(["python3-venv"])
    except Failure as failure:
        raise Unavailable(f"Python's venv is missing: {failure}") from None
    made = subprocess.run([sys.executable, "-m", "venv", folder], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Unavailable("Python's venv does not work: " + tail(made.stdout + made.stderr, 1).strip())
    trusted = {"PIP_CERT": CERTIFICATES} if os.path.exists(CERTIFICATES) else {}
    installed = subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", wanted],
        capture_output=True,
        text=True,
        check=False,
        env={**trusted, **os.environ},
    )
    if installed.returncode != 0:
        raise Unavailable(f"{wanted} cannot be installed from here: {tail(installed.stderr, 1).strip()}")
