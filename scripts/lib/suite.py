"""scripts/test: sets up what it needs, runs every check and test, and sums up."""

import argparse
import os
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

import api_schema
import device_tree
import disks
import ground
import guests
import nested_host
import packages
import processors
import quickstart_check
import room
import rust
import suite_arm
from places import PROJECT, TARGET
from python_programs import Unavailable
from report import command_line
from results import Results
from suite_run import NATIVE, NESTED, Run, binaries, captured, say

EPILOG = """parts:
  check   format, lints, documentation, dependencies, static build, these scripts
  unit    tests that need no KVM, and the examples in the documentation
  native  the bare-metal guest, on any kind of /dev/kvm
  nested  stock Linux guests, on a real KVM, or in the nested host where there is none
  aarch64 the same for Arm machines, on a machine that is none: cross build, lints, unit tests, stock Linux guests
  fuzz    the committed corpora, then each target for a short while

FILTER is a part of a test's, a test binary's or a fuzz target's name. The last line is always
`N passed, N failed, N skipped`; the exit status is 0 when nothing failed.
"""

# GiB for what all parts build and fetch. Cargo's incremental state is a third of it.
ROOM = 9 if os.environ.get("CARGO_INCREMENTAL") == "0" else 14

FUZZ_SECONDS = 5

FUZZ_RATE = 5000  # executions a second that a target of a device should have on one quiet core


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/test", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="only this part")
    parser.add_argument("filter", nargs="?", metavar="FILTER", help="only tests with this in their name")
    options = parser.parse_args()
    os.chdir(PROJECT)
    began = time.monotonic()
    if not options.part:
        room.ensure(ROOM, "the whole of scripts/test")
    run = Run(options.filter)
    run.prepare()
    if not options.part:
        run.begin_build()
    for name in [options.part] if options.part else PARTS:
        PARTS[name](run)
    for what, why in run.results.skipped:
        say(f"skipped: {what}: {why}")
    for what in run.results.retried:
        say(f"passed at a further attempt only: {what}")
    for what, seconds in sorted(run.results.slow, key=lambda slow: -slow[1]):
        say(f"took {seconds:.0f} s: {what}")
    if options.filter and run.results == Results():
        say(f"no {options.part} test has `{options.filter}` in its name")
        run.results.failed += 1
    say(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    print(run.results.summary(), flush=True)
    return 1 if run.results.failed else 0


def check(run):
    """All that looks at the source without running it."""
    everything = [PROJECT, *(PROJECT / folder for folder in ("tests/guest", "fuzz"))]
    for folder in everything:
        if (folder / "Cargo.toml").exists():
            name = "format" if folder == PROJECT else f"format of {folder.relative_to(PROJECT)}"
            # Outside the workspace `--all` would mean the crates of this project that are depended on, too.
            run.cargo(name, ["fmt", *(["--all"] if folder == PROJECT else []), "--check"], folder=folder)
    run.cargo("lints", ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
    run.cargo("documentation", ["doc", "--workspace", "--no-deps"], {"RUSTDOCFLAGS": "-D warnings"})
    dependencies(run)
    static_build(run)
    scripts(run)


def dependencies(run):
    """Licences, duplicates and sources; and known vulnerabilities where their database can be had."""
    if not (PROJECT / "deny.toml").exists():
        run.skip("dependencies", "there is no deny.toml")
        return
    if not run.set_up("dependencies", rust.ensure_tool, "cargo-deny"):
        return
    run.cargo("dependencies", ["deny", "--workspace", "check", "bans", "licenses", "sources"])
    fetched = subprocess.run(["cargo", "deny", "fetch", "db"], capture_output=True, check=False)
    if fetched.returncode != 0:
        run.skip("advisories", "the advisory database cannot be fetched from here")
        return
    run.cargo("advisories", ["deny", "--workspace", "check", "advisories"])


def static_build(run):
    """The binary must link statically, and start; unoptimized, since only linking is in question, which nothing but the last
    crate is about."""
    command = ["rustc", "--package", "vmm", "--bin", "vivarium", "--", "-C", "target-feature=+crt-static"]
    if run.cargo("static build", command):
        binary = TARGET / "debug" / "vivarium"
        headers = subprocess.run(["readelf", "-lW", binary], capture_output=True, text=True, check=False).stdout
        if "LOAD" not in headers or "INTERP" in headers:
            run.fail("static build", "the binary asks for a dynamic loader:\n" + headers)
        run.command("static binary starts", [binary, "--version"], count=False)


def scripts(run):
    """These scripts: Python that compiles, its own tests, and shell that shellcheck accepts."""
    library = PROJECT / "scripts" / "lib"
    broken = []
    for file in sorted(library.glob("*.py")):
        try:
            compile(file.read_text(), str(file), "exec")
        except SyntaxError as error:
            broken.append(f"{file}: {error}")
    if broken:
        run.fail("scripts", "\n".join(broken))
        return
    run.command("script tests", [sys.executable, "-B", "-m", "unittest", "-q", "selftest", "bench_selftest"], folder=library)
    if run.set_up("shell scripts", packages.ensure, ["shellcheck"]):
        for dialect in ("bash", "sh"):
            files = [str(file) for file in _shell_files(dialect)]
            run.command(f"{dialect} scripts", ["shellcheck", "-x", "-S", "warning", "-s", dialect, *files])


def unit(run):
    """Tests that need nothing of this machine but the binary."""
    if not run.build_machine("unit tests"):
        return
    chosen = f"not ({binaries(NATIVE)} | {binaries(NESTED)})"
    environment = {}
    try:
        environment["VIVARIUM_DT_VALIDATE"] = device_tree.validator()
    except Unavailable as unavailable:
        run.skip("device tree schemas", str(unavailable))
    run.nextest("unit tests", f"{chosen} & test(~{run.filter})" if run.filter else chosen, environment)
    if not run.filter:
        run.libtest("documentation examples", ["test", "--workspace", "--doc"])


def native(run):
    """Tests with the bare-metal guest on this machine's /dev/kvm."""
    if not ground.kvm_usable():
        run.skip("native tests", "this user cannot open /dev/kvm")
    # Some tests have a stock kernel refused.
    elif run.set_up("native tests", guests.ensure) and run.build_machine("native tests"):
        run.nextest("native tests", binaries(NATIVE, run.filter))
        if not run.filter or run.filter in "api schema":
            schema(run)


def schema(run):
    """The API against its own document, with requests that are made up."""
    run.call("API schema", api_schema.run)


def nested(run):
    """Tests that boot stock Linux."""
    where = ground.ground()
    if not run.set_up("nested tests", guests.ensure) or not run.build_machine("nested tests"):
        return
    if where == ground.NESTED and not run.set_up("nested tests", nested_host.snapshot):
        return
    # For the test that boots it. When it cannot be had, that test fails and says why.
    run.set_up("Debian root disk", disks.debian)
    variable = f"CARGO_TARGET_{os.uname().machine.upper()}_UNKNOWN_LINUX_GNU_RUNNER"
    name = "stock Linux, in the nested host" if where == ground.NESTED else "stock Linux"
    # Once in about a hundred boots there, a guest of four CPUs died of page faults on its per-CPU data while idle. It is
    # not explained; the emulated host runs four CPUs on two, and the emulator is the suspect. So a test has to fail again.
    attempts = 2 if where == ground.NESTED else 0
    run.nextest(name, binaries(NESTED, run.filter), {variable: str(PROJECT / "scripts" / "nested-runner")}, attempts)
    if not run.filter or run.filter in quickstart_check.NAME:
        retries = quickstart_check.RETRIES if where == ground.NESTED else 0
        run.call(quickstart_check.NAME, quickstart_check.run_for, processors.native(), retries=retries)


def fuzz(run):
    """Replays the corpora as ordinary tests, then lets each target look for more."""
    folder = PROJECT / "fuzz"
    if not (folder / "Cargo.toml").exists():
        run.skip("fuzzing", "there is no fuzz/Cargo.toml")
        return
    manifest = tomllib.loads((folder / "Cargo.toml").read_text())
    targets = [target["name"] for target in manifest.get("bin", []) if (run.filter or "") in target["name"]]
    if not run.filter:
        # Of the whole workspace, as the other tests: with fewer packages, fewer features, crates would be built once more.
        run.libtest("fuzz corpora", ["test", "--workspace", "--test", "corpus"])
    if not targets:
        return
    if not run.set_up("fuzzing", packages.ensure, ["g++"]) or not run.set_up("fuzzing", rust.ensure_tool, "cargo-fuzz"):
        return
    cargo, environment = rust.nightly()
    # The address sanitizer makes targets many times slower, and sees nothing of guest memory, which is mapped.
    sanitizer = ["--sanitizer", "none"]
    if not run.command("building fuzz targets", [*cargo, "fuzz", "build", *sanitizer], environment, count=False):
        return
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1))) as pool:
        for target, (status, output, spent) in pool.map(
            lambda target: (target, _fuzz_one(cargo, environment, sanitizer, target)), targets
        ):
            rate = next((line.split()[-1] for line in output.splitlines() if "average_exec_per_sec" in line), "?")
            slow = rate.isdigit() and int(rate) < FUZZ_RATE
            note = f", below the {FUZZ_RATE} of one quiet core" if slow else ""
            run.finished(f"fuzz {target}, {rate} executions/s{note}", status, output, spent)


def _fuzz_one(cargo, environment, sanitizer, target):
    found = TARGET / "fuzz-found" / target
    found.mkdir(parents=True, exist_ok=True)
    # New inputs go to the first folder: the committed corpus only grows by hand.
    corpus = [str(found)]
    if (PROJECT / "fuzz" / "corpus" / target).is_dir():
        corpus.append(str(PROJECT / "fuzz" / "corpus" / target))
    command = [*cargo, "fuzz", "run", *sanitizer, target, *corpus, "--", f"-max_total_time={FUZZ_SECONDS}"]
    command += ["-print_final_stats=1", "-timeout=10"]
    return captured(command, environment)


PARTS = {"check": check, "unit": unit, "native": native, "nested": nested, "aarch64": suite_arm.part, "fuzz": fuzz}


def _shell_files(dialect):
    """The project's scripts for that shell, by their first lines; a script without one is there to be sourced."""
    for file in sorted([*(PROJECT / "scripts").rglob("*"), PROJECT / ".ci" / "run", PROJECT / "tests" / "guest" / "build"]):
        if file.is_file() and file.suffix not in (".py", ".md"):
            words = file.read_bytes()[:64].split(b"\n")[0].replace(b"/", b" ").split()
            if (words[-1:] or [b""])[0] == dialect.encode() or (file.suffix == ".sh" and dialect == "bash"):
                yield file


if __name__ == "__main__":
    command_line(main)
