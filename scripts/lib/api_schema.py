"""Tests a monitor's API against its own OpenAPI document with Schemathesis, which makes up requests, right and wrong.

Run by itself: `python3 scripts/lib/api_schema.py [SECONDS]`."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import python_programs
from places import BARE_GUEST, PROJECT, VIVARIUM
from python_programs import Unavailable
from report import Failure

VERSION = "4.32.5"
DOCUMENT = PROJECT / "docs" / "openapi.json"

# What would end the process, or not end by itself, is left out; so is what makes a machine of made-up parts.
ALWAYS_LEFT_OUT = ["/vmm.shutdown", "/vm.events", "/vm.boot"]


@dataclass(frozen=True)
class State:
    """What a monitor has while its API is tested."""

    name: str
    arguments: list  # the monitor's, beside those of its API
    calls: list  # made first: each a verb, and its body or None
    left_out: list  # verbs that would end the state


MACHINE = ["--kernel", str(BARE_GUEST), "--cmdline", "end=spin", "--memory", "size=128M", "--serial", "null", "--console", "off"]
CREATED = {
    "payload": {"kernel": str(BARE_GUEST), "cmdline": "end=spin"},
    "memory": {"size": 128 << 20},
    "serial": {"mode": "Null"},
    "console": {"mode": "Off"},
}
STATES = [
    State("a running machine", MACHINE, [], ["/vm.delete", "/vm.shutdown"]),
    State("no machine", [], [], []),
    State("a machine that is created", [], [("vm.create", CREATED)], ["/vm.delete"]),
    State("a paused machine", MACHINE, [("vm.pause", None)], ["/vm.delete", "/vm.shutdown", "/vm.resume", "/vm.reboot"]),
]

SETTINGS = """
request-timeout = 20.0
generation.deterministic = true

[checks]
# A guest that does nothing does not release a device, either.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501"]
# What is right by the schema may still not suit the machine: 400 is as good an answer as 200.
positive_data_acceptance.enabled = false
# A path's other methods are refused with 405, but so is a verb that the state does not allow.
unsupported_method.enabled = false
"""


def run(seconds=60):
    """Tests a monitor in each of its states, for so many seconds. Returns the output; raises Failure with it."""
    program = python_programs.ensure("schemathesis", VERSION, "schemathesis")
    with ThreadPoolExecutor(len(STATES)) as pool:
        return "".join(pool.map(lambda state: _run_in(program, state, seconds), STATES))


def _run_in(program, state, seconds):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "api.sock"
        binary = os.environ.get("VIVARIUM_BIN", str(VIVARIUM))
        command = [binary, "--api-socket", str(path), *state.arguments]
        # What a made-up configuration names is looked for, and made, in the folder that goes.
        with subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as monitor:
            try:
                _wait_for(path, monitor)
                for verb, body in state.calls:
                    _call(path, verb, body)
                with _Bridge(path) as bridge:
                    settings = Path(folder) / "settings.toml"
                    settings.write_text(SETTINGS)
                    test = [program, "--config-file", settings, "--no-color", "run", DOCUMENT, "--url", bridge.url]
                    test += ["--phases", "examples,coverage,fuzzing", "--max-examples", "40", "--warnings", "off"]
                    test += ["--max-time", str(seconds)] if seconds else []
                    for name in ALWAYS_LEFT_OUT + state.left_out:
                        test += ["--exclude-path", name]
                    result = subprocess.run(
                        list(map(str, test)), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        text=True, timeout=seconds * 4 + 120, check=False,
                    )  # fmt: skip
                if monitor.poll() is not None:
                    errors = monitor.stderr.read().decode(errors="replace")
                    raise Failure(f"with {state.name}, the monitor ended ({monitor.returncode})", result.stdout + errors)
            finally:
                monitor.kill()
        if result.returncode != 0:
            raise Failure(f"with {state.name}, the API does not keep to its document", result.stdout)
        return result.stdout


def _wait_for(path, monitor):
    while monitor.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(path)) == 0:
                return
        time.sleep(0.01)
    raise Failure(f"the monitor ended ({monitor.returncode})", monitor.stderr.read().decode(errors="replace"))


def _call(path, verb, body):
    """Makes a call that has to succeed."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        connection = HTTPConnection("localhost")
        connection.sock = client
        connection.request("PUT", f"/api/v1/{verb}", *([json.dumps(body), {"Content-Type": "application/json"}] if body else []))
        answer = connection.getresponse()
        if answer.status >= 300:
            raise Failure(f"{verb} was answered with {answer.status}", answer.read().decode(errors="replace"))


class _Bridge(ThreadingTCPServer):
    """A TCP port that leads to a UNIX socket."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, path):
        super().__init__(("127.0.0.1", 0), _Carrier)
        self.path = str(path)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/api/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Carrier(BaseRequestHandler):
    def handle(self):
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(self.server.path)
            back = threading.Thread(target=_carry, args=(monitor, self.request), daemon=True)
            back.start()
            _carry(self.request, monitor)
            back.join()


def _carry(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        # One of the two takes no more, or has gone. What goes the other way is still carried to its end: a server that
        # refuses a request may close before it has read all of it.
        pass
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


if __name__ == "__main__":
    try:
        print(run(int(sys.argv[1]) if len(sys.argv) > 1 else 60))
    except Failure as failure:
        sys.exit(f"{failure.details}\n{failure}")
