"""How long the API takes to answer, as a client on one connection sees it, and what serving it costs a machine."""

import socket
import statistics
import tempfile
import time
from pathlib import Path

import bench_memory
from bench_figures import MEMORY_MIB, Experiment, Figure, guest
from bench_guest import Running

REQUESTS = 500
REQUEST = b"GET /api/v1/vm.info HTTP/1.1\r\nHost: localhost\r\n\r\n"


def experiment():
    """`vm.info` on a machine whose guest stands still."""
    machine = guest("hello; entered")

    def measure(monitor):
        if monitor.kind not in ("vivarium", "cloud-hypervisor"):
            return {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "api.sock"
            command = monitor.command(machine, folder)
            with Running(command) as running:
                without = first_instruction(running)
            with Running([*command, "--api-socket", str(path)]) as running:
                boot = first_instruction(running)
                times = latencies(path)
                used = sum(bench_memory.beyond_guest(running.pid, MEMORY_MIB << 20))
                rest = at_rest(running.pid, used)
        return {
            "api-info-p50": statistics.median(times) * 1e6,
            "api-info-p99": sorted(times)[len(times) * 99 // 100] * 1e6,
            "api-boot": boot,
            "api-boot-more": boot - without,
            "api-memory": rest / 1e6,
            "api-memory-used": used / 1e6,
        }

    figures = [
        Figure("api-info-p50", "API, vm.info, half of the requests within", "µs", False),
        Figure("api-info-p99", "- 99 % within", "µs", False),
        Figure("api-boot", "exec to first guest instruction, with an API", "ms", False, goal=5.0),
        Figure("api-boot-more", "- more than without", "ms", False, goal=1.0),
        Figure("api-memory", "memory beyond guest RAM, with an API that was used and rests", "MB", False, goal=4.0),
        Figure("api-memory-used", "- right after the last of many calls", "MB", False, goal=4.0),
    ]
    return Experiment("api", figures, measure, times=3, machine=machine)


def first_instruction(running):
    """Milliseconds from exec to the guest's first instruction."""
    hello, entered = running.lines(30)[:2]
    return (hello.arrived - entered.values["ns"]) / 1e6


def at_rest(pid, used):
    """Bytes beyond guest RAM when a monitor has given back what answering took, if it ever does."""
    rest = used
    deadline = time.monotonic() + 10
    while rest > 0.95 * used and time.monotonic() < deadline:
        time.sleep(0.5)
        rest = sum(bench_memory.beyond_guest(pid, MEMORY_MIB << 20))
    return rest


def latencies(path):
    """Seconds that each of many requests takes, one after the other on one connection."""
    times = []
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        for _ in range(REQUESTS):
            began = time.perf_counter()
            client.sendall(REQUEST)
            answer(client)
            times.append(time.perf_counter() - began)
    return times


def answer(client):
    """Status and body of a response."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(client)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = (int(line[16:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: "))
    length = next(lengths, 0)
    while len(body) < length:
        body += _more(client)
    return int(head.split()[1]), body


def _more(client):
    data = client.recv(65536)
    if not data:
        raise OSError("the monitor closed the connection")
    return data
