"""Checks device trees by the schemas that Linux has for them: dt-schema's programs, and the bindings out of the
distribution's package of the kernel's documentation."""

import gzip
import shutil
import subprocess
import sys

import packages
from places import cache, lock
from report import Failure, run, step, tail

VERSION = "2025.8"
SERIES = "6.12"
SUITE = {"bookworm": "bookworm-backports"}

# Where the bindings of what a machine has are.
FOLDERS = ["arm", "clock", "cpu", "gpio", "input", "interrupt-controller", "pci", "perf", "rtc", "serial", "timer"]


class Unavailable(Exception):
    """Why this cannot be run here."""


def validator():
    """The command line, in one text, that checks a device tree; its programs and schemas are made when missing."""
    folder = cache("tools") / f"dtschema-{VERSION}"
    schemas = folder / f"linux-{SERIES}.json"
    with lock("dtschema"):
        if not (folder / "bin" / "dt-validate").exists():
            _install(folder)
        if not schemas.exists():
            _process(folder, schemas)
    return f"{folder}/bin/dt-validate -s {schemas}"


def _install(folder):
    made = subprocess.run([sys.executable, "-m", "venv", folder], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise Unavailable("Python's venv is missing (python3-venv)")
    install = [folder / "bin" / "pip", "install", "--quiet", f"dtschema=={VERSION}"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        raise Unavailable("dtschema cannot be installed from here: " + tail(installed.stderr).strip())


def _process(folder, schemas):
    """Makes one file of all schemas."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "bindings").mkdir(parents=True)
    try:
        suite = SUITE.get(packages.codename())
        if suite:
            packages.ensure_suite(suite)
        package = packages.download(f"linux-doc-{SERIES}", work)
    except Failure as failure:
        raise Unavailable(f"there is no package linux-doc-{SERIES}: {failure}") from None
    with step("processing the kernel's device tree schemas"):
        run(["dpkg-deb", "-x", package, work], "unpacking the kernel's documentation")
        (place,) = work.glob("usr/share/doc/linux-doc-*/Documentation/devicetree/bindings")
        for name in FOLDERS:
            for file in sorted((place / name).rglob("*.yaml*")):
                packed = file.suffix == ".gz"
                target = work / "bindings" / str(file.relative_to(place)).removesuffix(".gz")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
        new = work / "schemas.json"
        run([folder / "bin" / "dt-mk-schema", "-j", "-o", new, work / "bindings"], "processing schemas")
        new.rename(schemas)
    shutil.rmtree(work)
