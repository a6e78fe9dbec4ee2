"""Records which of the program's functions run, and when, so that the linker can put them side by side.

The kernel maps a program's code in pieces of 64 KiB and more. Where what runs is strewn among what does not, nearly all of the
program is in memory; side by side, it is a third. The order is in vmm/functions.order, and vmm/build.rs gives it to the linker."""

import argparse
import json
import os
import re
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path

import packages
import rust
from breakpoints import Traced, symbols
from places import BARE_GUEST, PROJECT, replace
from report import Failure, command_line, run, step

ORDER = PROJECT / "vmm" / "functions.order"
FOLDER = PROJECT / "target" / "order"

# Generic functions have the same name for each of their types, as far as this goes: more than so many are kept apart.
FEW = 8

HEADER = """\
# The program's functions in the order in which they are laid out, made by scripts/order-functions: names as the linker knows them, with
# a star for what differs between compilers. Names that there are no more do no harm.
"""

# The guest is there, and idle.
READY = "@@ entered"
# The guest's work is done.
DONE = "@@ blk-randread"

LOOKS = ["vmm.ping", "vm.info", "vm.counters", "vm.inspect?path=", "vm.info"]

# Its refusal is recorded, too.
NO_SUCH_VERB = "/api/v1/vm.there-is-no-such-verb"


def main():
    description, _, details = __doc__.partition("\n\n")
    argparse.ArgumentParser(prog="scripts/order-functions", description=description, epilog=details).parse_args()
    if os.uname().machine != "x86_64":
        raise Failure("this works on x86_64; the order that it makes is good for each processor")
    program = _build()
    with step("recording which functions run"), tempfile.TemporaryDirectory() as folder:
        phases = _record(program, Path(folder))
    replace(ORDER, HEADER + "".join(_lines(phases, program)))
    for title, names in phases:
        print(f"{title}: {len(names)} functions")
    print(f"written: {ORDER.relative_to(PROJECT)}")


def _build():
    packages.ensure(["binutils"])
    rust.ensure()
    with step("building the release, with the names of its functions"):
        settings = {"CARGO_PROFILE_RELEASE_STRIP": "none", "CARGO_TARGET_DIR": str(FOLDER)}
        command = ["cargo", "build", "--release", "--locked", "--bin", "vivarium"]
        run(command, "building the release", cwd=PROJECT, env=settings)
        run([PROJECT / "tests" / "guest" / "build", BARE_GUEST], "building the bare-metal guest")
    return FOLDER / "release" / "vivarium"


def _record(program, folder):
    """Titles and functions of each phase, in the order in which they are laid out."""
    socket_path, output = folder / "api.sock", folder / "output"
    for name in ("a.img", "b.img"):
        os.truncate(_made(folder / name), 64 << 20)
    command = [program, "--kernel", BARE_GUEST, "--cmdline", "hello; entered; blk-randread qd=32 secs=1; end=spin"]
    command += ["--memory", "size=128M", "--serial", f"file={output}", "--disk", f"path={folder / 'a.img'}"]
    command += ["--api-socket", socket_path]
    client = _Client(socket_path)

    def looking():
        for verb in LOOKS:
            client.call("GET", f"/api/v1/{verb}")
        client.call("GET", "/metrics")

    def changes():
        client.call("PUT", "/api/v1/vm.pause")
        client.call("PUT", "/api/v1/vm.resume")
        client.call("PUT", "/api/v1/vm.add-disk", {"path": str(folder / "b.img"), "id": "b"})
        client.call("PUT", "/api/v1/vm.remove-device", {"id": "b", "force": True})
        client.call("PUT", NO_SUCH_VERB)

    with Traced(command) as traced:
        start = traced.record(lambda: _wait_for(output, READY))
        work = traced.record(lambda: _wait_for(output, DONE))
        looks = traced.record(looking)
        changing = traced.record(changes)
        # Longer than the monitor waits until it gives back what the calls took.
        rest = traced.record(lambda: time.sleep(8), stepping=lambda thread: not thread.startswith("vcpu"))
    return [
        ("at rest", rest + [name for names in symbols(program).values() for name in names if "6settle" in name]),
        ("while the guest works", work),
        ("when the API is asked", looks),
        ("when the machine changes", changing),
        ("at the start", start),
    ]


def _lines(phases, program):
    """The order's file, by its lines."""
    names = Counter(pattern for names in symbols(program).values() for pattern in set(map(_pattern, names)))
    known, many = set(), []
    for title, functions in phases:
        yield f"# {title}\n"
        for pattern in filter(None, map(_pattern, functions)):
            if pattern not in known:
                known.add(pattern)
                if names[pattern] > FEW:
                    many.append(pattern)
                else:
                    yield f"{pattern}\n"
    yield "# of many types\n"
    yield from (f"{pattern}\n" for pattern in many)


def _pattern(name):
    """A function's name (rustc's mangling v0) without what differs between compilers: crates' disambiguators, places of what is
    repeated, and numbers that the compiler adds. None: it is not Rust's."""
    if not name.startswith("_R"):
        return None
    name = re.sub(r"\.\d+$", "*", name)
    return re.sub(r"B[0-9A-Za-z]{0,2}_", "B*_", re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name))


def _made(path):
    path.touch()
    return path


def _wait_for(path, text):
    deadline = time.monotonic() + 120
    while not path.exists() or text not in path.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise Failure(f"the guest did not say {text!r} within two minutes")
        time.sleep(0.01)


class _Client:
    """Of the API, over one connection for each call."""

    def __init__(self, path):
        self._path = str(path)

    def call(self, method, path, body=None):
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if content:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self._path)
            client.settimeout(60)
            client.sendall(head.encode() + b"\r\n" + content)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        if not answer.startswith(b"HTTP/1.1 20") and path != NO_SUCH_VERB:
            raise Failure(f"{method} {path} failed", answer.decode(errors="replace"))


if __name__ == "__main__":
    command_line(main)
