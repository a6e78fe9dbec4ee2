"""What a test run came to: counts, the reasons of skips, and how both are read out of the test runners' reports.

A test that finds that this machine lacks something it needs prints a line `@@SKIP reason` and returns."""

import re
import xml.etree.ElementTree as xml
from dataclasses import dataclass, field

SKIP_MARK = "@@SKIP "

# Tests of one step that may pass at a further attempt only. The emulation goes wrong once in about a hundred boots; a fault of
# ours that shows now and then makes for more.
MOST_RETRIED = 3


@dataclass
class Results:
    """Counts of checks and tests; a check is a step that passes or fails as a whole."""

    passed: int = 0
    failed: int = 0
    skipped: list = field(default_factory=list)  # (what, why)
    retried: list = field(default_factory=list)  # what failed before it passed
    slow: list = field(default_factory=list)  # (what, seconds), longer than a test should take

    def add(self, other):
        """Takes another's counts in."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.retried += other.retried
        self.slow += other.slow

    def too_many_retried(self):
        """What to say when more tests needed a further attempt than chance explains, else None."""
        if len(self.retried) <= MOST_RETRIED:
            return None
        return f"{len(self.retried)} tests passed at a further attempt only, {MOST_RETRIED} at most may: {', '.join(self.retried)}"

    def summary(self):
        """The last line of scripts/test."""
        return f"{self.passed} passed, {self.failed} failed, {len(self.skipped)} skipped"


def of_junit(path, limit=None):
    """The results in nextest's JUnit report. Tests that took more than `limit` seconds are noted."""
    results = Results()
    for case in xml.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')} {case.get('name')}"
        seconds = float(case.get("time") or 0)
        if limit is not None and seconds > limit:
            results.slow.append((name, seconds))
        if case.find("failure") is not None or case.find("error") is not None:
            results.failed += 1
            continue
        if case.find("flakyFailure") is not None:
            results.retried.append(name)
        output = "".join(case.itertext())
        # After the test's name, where it is printed before the test is run: with one CPU.
        reason = re.search(rf"^(?:test \S+ \.\.\. )?{SKIP_MARK}(.*)$", output, re.MULTILINE)
        if reason:
            results.skipped.append((name, reason[1].strip()))
        else:
            results.passed += 1
    return results


def of_libtest(text):
    """The results in the output of `cargo test`; reasons of skips are in it where tests show their output."""
    results = Results()
    for passed, failed, ignored in re.findall(r"test result: .*? (\d+) passed; (\d+) failed; (\d+) ignored", text):
        results.passed += int(passed)
        results.failed += int(failed)
        results.skipped += [("a test", "marked `ignore`")] * int(ignored)
    for name, output in re.findall(r"^---- (\S+) stdout ----\n(.*?)(?=^----|^successes:|\Z)", text, re.MULTILINE | re.DOTALL):
        reason = re.search(rf"^{SKIP_MARK}(.*)$", output, re.MULTILINE)
        if reason:
            results.passed -= 1
            results.skipped.append((name, reason[1].strip()))
    return results
