"""Checks device trees by the schemas that Linux has for them: dt-schema's programs, and the bindings out of the
distribution's package of the kernel's documentation."""

import gzip
import shutil

import packages
import python_programs
from places import fingerprint, lock
from python_programs import Unavailable
from report import Failure, run, step

VERSION = "2025.8"
SERIES = "6.12"
SUITE = {"bookworm": "bookworm-backports"}

# Where the bindings of what a machine has are.
FOLDERS = ["arm", "clock", "cpu", "gpio", "input", "interrupt-controller", "memory-controllers", "pci", "perf", "rtc", "serial", "timer"]


def validator():
    """The command line, in one text, that checks a device tree; its programs and schemas are made when missing."""
    program = python_programs.ensure("dtschema", VERSION, "dt-validate")
    folder = program.parent.parent
    schemas = folder / f"linux-{SERIES}-{fingerprint(*FOLDERS)}.json"
    with lock("dtschema-schemas"):
        if not schemas.exists():
            _process(folder, schemas)
    return f"{program} -s {schemas}"


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
