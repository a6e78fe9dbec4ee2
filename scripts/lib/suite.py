"""scripts/test: sets up what it needs, runs every check and test, and sums up."""

import argparse
import os
import shlex
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

import api_schema
import arm_hosts
import device_tree
import disks
import ground
import guests
import nested_host
import nested_kinds
import packages
import processors
import results
import rust
from places import BARE_GUEST, CACHE, PROJECT, TARGET, VIVARIUM
from python_programs import Unavailable
from report import Failure, command_line, tail
from results import Results

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

# Test binaries of tests/ that need more than unit tests do; the name's start says what.
NATIVE = "native_"
NESTED = "linux_"

FUZZ_SECONDS = 7

# A test that takes more seconds is named in the report: several machines in it may be tests of their own. Arm is emulated.
SLOW = 15
SLOW_ON_ARM = 20
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
    chosen = f"not ({_binaries(NATIVE)} | {_binaries(NESTED)})"
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
        run.nextest("native tests", _binaries(NATIVE, run.filter))
        if not run.filter or run.filter in "api schema":
            schema(run)


def schema(run):
    """The API against its own document, with requests that are made up."""
    began = time.monotonic()
    try:
        output, status = api_schema.run(), 0
    except Unavailable as unavailable:
        run.skip("API schema", str(unavailable))
        return
    except Failure as failure:
        output, status = f"{failure.details}\n{failure}", 1
    run.finished("API schema", status, output, time.monotonic() - began)


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
    run.nextest(name, _binaries(NESTED, run.filter), {variable: str(PROJECT / "scripts" / "nested-runner")}, attempts)


def fuzz(run):
    """Replays the corpora as ordinary tests, then lets each target look for more."""
    folder = PROJECT / "fuzz"
    if not (folder / "Cargo.toml").exists():
        run.skip("fuzzing", "there is no fuzz/Cargo.toml")
        return
    manifest = tomllib.loads((folder / "Cargo.toml").read_text())
    targets = [target["name"] for target in manifest.get("bin", []) if (run.filter or "") in target["name"]]
    if not run.filter:
        run.libtest("fuzz corpora", ["test", "--package", "fuzz-targets"])
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
    return _captured(command, environment)


def aarch64(run):
    """Everything for Arm, on a machine of another processor. On an Arm machine the other parts do it."""
    processor = processors.AARCH64
    why = "the other parts test it here" if processor.native else processors.available(processor)
    if why:
        run.skip("aarch64", why)
        return
    if not run.set_up("aarch64", rust.ensure_cross, processor):
        return
    environment = rust.ensure_cross(processor) | CROSS_ENVIRONMENT
    cargo = rust.cargo(environment)
    _, version, _ = _captured([environment.get("RUSTC", "rustc"), "--version"])
    say(f"                  aarch64: {version.strip()}")
    target = ["--target", processor.target]
    # The same packages for all tests, so that each is built once.
    tested = [*target, *(word for name in (*EMULATED, "vivarium-tests", "fuzz-targets") for word in ("--package", name))]
    if not run.filter:
        lints = [cargo, "clippy", *target, "--workspace", "--all-targets", "--", "-D", "warnings"]
        run.command("aarch64 lints", lints, environment)
        # By cargo's own runner, which starts a program once for all its tests: in emulation that is most of what a short one takes.
        unit = ["test", *tested, "--lib", "--test", "sim_*", "--", "--show-output"]
        unit += [word for name in NOT_TOLD_IN_EMULATION for word in ("--skip", name)]
        run.libtest("aarch64 unit tests, in user-mode emulation", unit, environment, cargo)
        devices = ["test", *target, "--package", "devices", "--lib", "--", *ARM_DEVICES]
        run.libtest("aarch64 devices' unit tests, in user-mode emulation", devices, environment, cargo)
        corpora = ["test", *tested, "--test", "corpus", "--", *ARM_CORPORA]
        run.libtest("aarch64 fuzz corpora, in user-mode emulation", corpora, environment, cargo)
        for name, reason in NOT_EMULATED.items():
            run.skip(f"aarch64 unit tests of {name}", reason)
    binary = CROSS_TARGET / processor.target / "release" / "vivarium"
    command = [cargo, "build", "--release", *target, "--package", "vmm", "--bin", "vivarium"]
    if not run.command("aarch64 release build", command, environment, count=False):
        return
    for action, arguments in ((guests.ensure, (True, processor)), (nested_host.snapshot, (nested_kinds.ARM,))):
        if not run.set_up("aarch64 nested tests", action, *arguments):
            return
    guest = TARGET / "guest" / f"guest-{processor.name}"
    builder = [PROJECT / "tests" / "guest" / "build", guest, processor.name]
    if not run.command("aarch64 bare-metal guest", builder, environment, count=False):
        return
    variable = f"CARGO_TARGET_{processor.target.upper().replace('-', '_')}_RUNNER"
    environment |= {
        variable: str(PROJECT / "scripts" / "nested-runner"),
        "VIVARIUM_BIN": str(binary),
        "VIVARIUM_GUESTS": str(guests.folder(processor)),
        "VIVARIUM_BARE_GUEST": str(guest),
    }
    chosen = " | ".join(_binaries(prefix, run.filter) for prefix in (NESTED, *BARE_ON_ARM))
    name = "whole machines, in the nested Arm host"
    run.nextest(name, chosen, environment, retries=1, cargo=cargo, options=tested, limit=SLOW_ON_ARM)
    for word, (name, command) in arm_hosts.STEPS.items():
        if not run.filter or run.filter in word:
            run.command(name, command(binary, processor))


PARTS = {"check": check, "unit": unit, "native": native, "nested": nested, "aarch64": aarch64, "fuzz": fuzz}

CROSS_TARGET = TARGET / "aarch64"

# Of the tests with the bare-metal guest, those that are about machines; the others are about the program that runs them.
BARE_ON_ARM = ("native_boot", "native_devices", "native_gic", "native_hostile")

# Optimized, since an emulated processor runs it, but not for the last per cent, which takes minutes to build.
CROSS_ENVIRONMENT = {
    "CARGO_TARGET_DIR": str(CROSS_TARGET),
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
}

# Crates whose unit tests need of the kernel only what user-mode emulation has, and why others' are not run there. What those are
# about is seen in the whole machines.
EMULATED = ["machine", "pci", "virtio", "hypervisor", "arch", "vmm"]
NOT_EMULATED = {
    "block": "user-mode emulation has no io_uring",
    "net": "it has no taps",
    "devices but those of Arm": "they take long, and what they test is the same on each architecture",
    "vmm's resident pages": "user-mode emulation does not tell which pages are there",
    "fuzz targets but those about the architecture": "the other corpora are replayed on x86_64",
}
NOT_TOLD_IN_EMULATION = ["populated_pages_are_there_with_what_they_held", "prefaulted_memory_is_resident"]
# Devices that only such a machine has.
ARM_DEVICES = ["pflash", "primecell"]
# Fuzz targets of what is not the same on each architecture.
ARM_CORPORA = ["api", "gdb", "kernel_loader", "options"]

BUILD = ["cargo", "build", "--release", "--bin", "vivarium"]

# The programs that tests ask, as judges of what the monitor does or as its clients.
ASKED_BY_TESTS = [
    "acpica-tools", "binutils", "curl", "device-tree-compiler", "dmidecode", "e2fsprogs", "fish", "gdb", "iproute2", "procps", "xz-utils", "zsh", "zstd",
]  # fmt: skip

# What the tests of one step that cargo runs itself may take, builds included, and what timeout(1) ends with after that.
LIBTEST_SECONDS = 1800
TIMED_OUT = 124

# Where nextest writes its report: below the workspace, wherever cargo's output goes.
REPORT = PROJECT / "target" / "nextest" / "ci" / "junit.xml"


class Run:
    """One run of scripts/test: where results gather."""

    def __init__(self, name_filter):
        self.results = Results()
        self.filter = name_filter
        self._build = None  # the release build, while it runs beside something else
        self._built = None  # whether the release build worked, once it was tried

    def prepare(self):
        """What every part needs. A failure here ends the run: nothing could be learnt."""
        rust.ensure()
        rust.ensure_tool("cargo-nextest")
        packages.ensure(ASKED_BY_TESTS)

    def set_up(self, name, action, *arguments):
        """Runs a preparation; when it fails, so has the check that needed it."""
        try:
            action(*arguments)
            return True
        except Failure as failure:
            self.fail(name, f"{tail(failure.details)}\n{failure}".strip())
            return False

    def begin_build(self):
        """Builds the monitor beside the checks: most of it is the linker's work, on one core."""
        self._build = ThreadPoolExecutor(1).submit(_captured, BUILD)

    def build_machine(self, name):
        """Builds the monitor and the bare-metal guest, once."""
        if self._built is None:
            status, output, spent = self._build.result() if self._build else _captured(BUILD)
            self._built = self.finished("release build", status, f"$ {shlex.join(BUILD)}\n{output}", spent, count=False)
            self._built &= self.command("bare-metal guest", ["tests/guest/build", str(BARE_GUEST)], count=False)
        elif not self._built:
            self.fail(name, "the build failed above")
        return self._built

    def cargo(self, name, arguments, environment=None, folder=PROJECT):
        """A check that is one cargo command."""
        return self.command(name, ["cargo", *arguments], environment, folder)

    def command(self, name, command, environment=None, folder=PROJECT, count=True):
        """A check that is one command. Its output is shown when it fails. With `count` off it is only a preparation:
        its success counts for nothing, its failure does."""
        _begin(name)
        status, output, spent = _captured(command, environment, folder)
        return self.finished(name, status, f"$ {shlex.join(map(str, command))}\n{output}", spent, count)

    def nextest(self, name, chosen, environment=None, retries=0, cargo="cargo", options=(), limit=SLOW):
        """Runs the tests that `chosen`, a nextest filter expression, selects; those that fail, up to `retries` times more. What
        takes more than `limit` seconds is noted."""
        environment = {**TEST_ENVIRONMENT, **(environment or {})}
        REPORT.unlink(missing_ok=True)
        command = [cargo, "nextest", "run", *(options or ["--workspace"]), "--profile", "ci", "--no-tests", "pass" if self.filter else "fail", "-E", chosen]
        command += ["--retries", str(retries)]
        _begin(name)
        status, output, spent = _captured(command, environment)
        found = results.of_junit(REPORT, limit) if REPORT.exists() else Results()
        if status != 0 and not found.failed:
            found.failed = 1
        self._tests(name, found, status, output, spent)

    def libtest(self, name, arguments, environment=None, cargo="cargo"):
        """Runs tests by cargo's own runner, which has no limit for a test that hangs, all of them together."""
        _begin(name)
        action, *rest = arguments
        command = ["timeout", "--kill-after=10", str(LIBTEST_SECONDS), cargo, action, "--no-fail-fast", *rest]
        status, output, spent = _captured(command, {**TEST_ENVIRONMENT, **(environment or {})})
        if status == TIMED_OUT:
            output += f"\nnot done within {LIBTEST_SECONDS} s: the test that was begun last hangs, or this machine is too slow"
        found = results.of_libtest(output)
        if status != 0 and not found.failed:
            found.failed = 1
        self._tests(name, found, status, output, spent)

    def finished(self, name, status, output, spent, count=True):
        """Notes the end of one check."""
        if status == 0:
            self.results.passed += 1 if count else 0
            say(f"ok      {spent:6.1f} s  {name}")
            return True
        say(f"FAILED  {spent:6.1f} s  {name}")
        print(output, flush=True)
        self.results.failed += 1
        return False

    def fail(self, name, why):
        """Notes a check that failed."""
        say(f"FAILED            {name}")
        print(why, flush=True)
        self.results.failed += 1

    def skip(self, name, why):
        """Notes a check that cannot run here."""
        say(f"skipped           {name}: {why}")
        self.results.skipped.append((name, why))

    def _tests(self, name, found, status, output, spent):
        say(f"{'ok    ' if status == 0 else 'FAILED'}  {spent:6.1f} s  {name}: {found.summary()}")
        if status != 0:
            print(output, flush=True)
        self.results.add(found)
        if why := found.too_many_retried():
            self.fail(name, why)


# Where tests find what they run. Values in the environment win, to test another build.
TEST_ENVIRONMENT = {
    "VIVARIUM_BIN": os.environ.get("VIVARIUM_BIN", str(VIVARIUM)),
    "VIVARIUM_GUESTS": os.environ.get("VIVARIUM_GUESTS", str(CACHE)),
    # A folder on a file system that has direct I/O and can punch holes, for disk images.
    "VIVARIUM_SCRATCH": os.environ.get("VIVARIUM_SCRATCH", "/var/tmp"),
    "VIVARIUM_BARE_GUEST": os.environ.get("VIVARIUM_BARE_GUEST", str(BARE_GUEST)),
}


def say(text):
    """A line of the report, which goes to standard output."""
    if sys.stdout.isatty():
        print("\r\x1b[K", end="")
    print(text, flush=True)


def _begin(name):
    """Shows what runs at the moment, where the line can be overwritten."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K        {name} ...", end="", flush=True)


def _captured(command, environment=None, folder=PROJECT):
    began = time.monotonic()
    result = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return result.returncode, result.stdout, time.monotonic() - began


def _binaries(prefix, name_filter=None):
    """A nextest expression for the test binaries whose names start so; the runner refuses names that do not exist.
    With a filter, those of their tests that have it in their own or their binary's name."""
    names = {path.stem if path.is_file() else path.name for path in PROJECT.glob(f"*/tests/{prefix}*")}
    terms = []
    for name in sorted(names):
        whole = not name_filter or name_filter in name
        terms.append(f"binary(={name})" if whole else f"(binary(={name}) & test(~{name_filter}))")
    return f"({' | '.join(terms)})" if terms else "none()"


def _shell_files(dialect):
    """The project's scripts for that shell, by their first lines; a script without one is there to be sourced."""
    for file in sorted([*(PROJECT / "scripts").rglob("*"), PROJECT / ".ci" / "run", PROJECT / "tests" / "guest" / "build"]):
        if file.is_file() and file.suffix not in (".py", ".md"):
            words = file.read_bytes()[:64].split(b"\n")[0].replace(b"/", b" ").split()
            if (words[-1:] or [b""])[0] == dialect.encode() or (file.suffix == ".sh" and dialect == "bash"):
                yield file


if __name__ == "__main__":
    command_line(main)
