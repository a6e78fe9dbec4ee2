"""One run of scripts/test: its steps, and what they came to."""

import os
import shlex
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import monitor
import packages
import processors
import results
import rust
from places import BARE_GUEST, CACHE, PROJECT, VIVARIUM
from python_programs import Unavailable
from report import Failure, tail
from results import Results

# The programs that tests ask, as judges of what the monitor does or as its clients.
ASKED_BY_TESTS = [
    "acpica-tools", "binutils", "curl", "device-tree-compiler", "dmidecode", "e2fsprogs", "fish", "gdb", "iproute2", "procps", "xz-utils", "zsh", "zstd",
]  # fmt: skip

# Test binaries of tests/ that need more than unit tests do; the name's start says what.
NATIVE = "native_"
NESTED = "linux_"

# A test that takes more seconds is named in the report: several machines in it may be tests of their own. Arm is emulated.
SLOW = 15

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
        command, environment, _ = monitor.build(processors.native())
        self._build = ThreadPoolExecutor(1).submit(captured, command, environment)

    def build_machine(self, name):
        """Builds the monitor and the bare-metal guest, once."""
        if self._built is None:
            if not self._build:
                self.begin_build()
            status, output, spent = self._build.result()
            self._built = self.finished("release build", status, output, spent, count=False)
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
        status, output, spent = captured(command, environment, folder)
        return self.finished(name, status, f"$ {shlex.join(map(str, command))}\n{output}", spent, count)

    def call(self, name, action, *arguments, retries=0):
        """A check that is a function. It raises Failure, or Unavailable where this machine lacks what it needs; anything else is
        a defect in it, which fails this check and no other. One that fails is made again, up to `retries` times."""
        _begin(name)
        began = time.monotonic()
        status, output = _called(action, arguments)
        attempts = 1
        while status not in (0, None) and attempts <= retries:
            say(f"again             {name}: {tail(output, 1)}")
            status, output = _called(action, arguments)
            attempts += 1
        if status is None:
            self.skip(name, output)
            return
        if status == 0 and attempts > 1:
            self.results.retried.append(name)
        self.finished(name, status, output, time.monotonic() - began)

    def nextest(self, name, chosen, environment=None, retries=0, cargo="cargo", options=(), limit=SLOW):
        """Runs the tests that `chosen`, a nextest filter expression, selects; those that fail, up to `retries` times more. What
        takes more than `limit` seconds is noted."""
        environment = {**TEST_ENVIRONMENT, **(environment or {})}
        REPORT.unlink(missing_ok=True)
        command = [cargo, "nextest", "run", *(options or ["--workspace"]), "--profile", "ci", "--no-tests", "pass" if self.filter else "fail", "-E", chosen]
        command += ["--retries", str(retries)]
        _begin(name)
        status, output, spent = captured(command, environment)
        found = results.of_junit(REPORT, limit) if REPORT.exists() else Results()
        if status != 0 and not found.failed:
            found.failed = 1
        self._tests(name, found, status, output, spent)

    def libtest(self, name, arguments, environment=None, cargo="cargo", expected=None):
        """Runs tests by cargo's own runner, which has no limit for a test that hangs, all of them together. With `expected`, so
        many have to pass: that runner is content with none."""
        _begin(name)
        action, *rest = arguments
        command = ["timeout", "--kill-after=10", str(LIBTEST_SECONDS), cargo, action, "--no-fail-fast", *rest]
        status, output, spent = captured(command, {**TEST_ENVIRONMENT, **(environment or {})})
        if status == TIMED_OUT:
            output += f"\nnot done within {LIBTEST_SECONDS} s: the test that was begun last hangs, or this machine is too slow"
        found = results.of_libtest(output)
        if status == 0 and expected not in (None, found.passed):
            status, output = 1, f"{output}\n{found.passed} tests passed where {expected} should: their names may have changed"
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


def captured(command, environment=None, folder=PROJECT):
    """Runs a command: its status, what it printed, and the seconds that it took."""
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


def _called(action, arguments):
    """Calls a check: its status, None where this machine lacks what it needs, and what there is to say."""
    try:
        action(*arguments)
    except Unavailable as unavailable:
        return None, str(unavailable)
    except Failure as failure:
        return 1, f"{failure.details}\n{failure}"
    except Exception:
        return 1, traceback.format_exc()
    return 0, ""


def binaries(prefix, name_filter=None):
    """A nextest expression for the test binaries whose names start so; the runner refuses names that do not exist.
    With a filter, those of their tests that have it in their own or their binary's name."""
    names = {path.stem if path.is_file() else path.name for path in PROJECT.glob(f"*/tests/{prefix}*")}
    terms = []
    for name in sorted(names):
        whole = not name_filter or name_filter in name
        terms.append(f"binary(={name})" if whole else f"(binary(={name}) & test(~{name_filter}))")
    return f"({' | '.join(terms)})" if terms else "none()"
