"""What the scripts say: one line per step with its time, and one line for what went wrong.

`Failure` is the only exception that a command's `main` turns into a message; anything else is a defect in the
scripts and shows its traceback."""

import os
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager


class Failure(Exception):
    """Something the person at the terminal can act on. The text is one line, `details` the output behind it."""

    def __init__(self, text, details=""):
        super().__init__(text)
        self.details = details


# Steps go to standard error, so that a command's own output can be piped.
_open_line = None


def note(text):
    """Prints a line of its own, also in the middle of a step."""
    _end_line()
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text):
    """Prints `text ... 1.2 s`; quiet about the time when the work was instant."""
    global _open_line
    _end_line()
    began = time.monotonic()
    print(f"{text} ... ", end="", file=sys.stderr, flush=True)
    _open_line = text
    outcome = "failed after"
    try:
        yield
        outcome = ""
    finally:
        spent = f"{outcome} {time.monotonic() - began:.1f} s".strip()
        if _open_line == text:
            print(spent, file=sys.stderr, flush=True)
        else:
            print(f"{text} ... {spent}", file=sys.stderr, flush=True)
        _open_line = None


def _end_line():
    global _open_line
    if _open_line is not None:
        print(file=sys.stderr)
        _open_line = None


def run(command, what, env=None, cwd=None, input=None):
    """Runs `command` (a list) and returns its standard output as text; `what` names the purpose in the failure."""
    result = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        shown = shlex.join(str(word) for word in command)
        raise Failure(f"{what}: `{shown}` ended with status {result.returncode}", result.stdout + result.stderr)
    return result.stdout


def command_line(main):
    """Runs `main()` and exits with its result; a `Failure` becomes one line, after the output behind it."""
    try:
        status = main()
    except Failure as failure:
        _end_line()
        if failure.details.strip():
            print(tail(failure.details), file=sys.stderr)
        print(f"error: {failure}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        _end_line()
        status = 130
    sys.exit(status)


def tail(text, lines=25):
    """The last lines of `text`."""
    return "\n".join(text.rstrip().splitlines()[-lines:])
