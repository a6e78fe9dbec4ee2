"""Tests of scripts/bench that start no monitor; run with those of `selftest.py`."""

import socket
import tempfile
import types
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path
from unittest import mock

import bench_api
import bench_boards
import bench_figures
import bench_guest
import bench_hotplug
import bench_many
import bench_memory
import bench_monitors
import bench_plot
import bench_report
from bench_figures import Figure
from bench_monitors import Machine, Monitor
from report import Failure

MIB = 1 << 20


def mapping(start, size, pss, anonymous):
    return f"{start:x}-{start + size:x} rw-p 00000000 00:00 0 \nPss: {pss >> 10} kB\nAnonymous: {anonymous >> 10} kB\n"


class Monitors(unittest.TestCase):
    """How peers are named and told what to run."""

    def test_the_kind_is_told_or_known_by_the_files_name(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "firecracker-v1")
            path.touch()
            (peer,) = bench_monitors.parse_peer(f"fc={path}")
            self.assertEqual((peer.name, peer.kind), ("fc", "firecracker"))
            (peer,) = bench_monitors.parse_peer(f"old={path}:vivarium")
            self.assertEqual((peer.path, peer.kind), (path, "vivarium"))
            for board, names in ((bench_boards.PC, ["new microvm", "new q35"]), (bench_boards.ARM, ["new virt"])):
                with mock.patch.object(bench_boards, "native", lambda board=board: board):
                    self.assertEqual([peer.name for peer in bench_monitors.parse_peer(f"new={path}:qemu")], names)
            other = Path(folder, "crosvm")
            other.touch()
            for text in (f"x={other}", f"x={folder}/none", str(path)):
                with self.assertRaises(Failure):
                    bench_monitors.parse_peer(text)

    def test_qemu_is_told_of_this_processors_machines(self):
        machine = Machine(Path("/k"), "hello", disk=Path("/d"), tap="t0")
        pc = [*bench_monitors.QEMU_PC, "-M", "q35,accel=kvm"]
        arm = ["-cpu", "host", "-M", "virt,accel=kvm,gic-version=3"]
        for board, kind, options in ((bench_boards.PC, "qemu-q35", pc), (bench_boards.ARM, "qemu-virt", arm)):
            with mock.patch.object(bench_boards, "native", lambda board=board: board):
                self.assertIn(kind, [peer.kind for peer in bench_monitors._machines("QEMU", board.qemu)])
                command = Monitor("QEMU", board.qemu, kind).command(machine, "/")
                self.assertEqual(command[0], str(board.qemu))
                self.assertIn(" ".join(options), " ".join(command))
                self.assertEqual("-bios" in command, board is bench_boards.PC)

    def test_exits_are_those_that_this_processor_has(self):
        for board, keys in ((bench_boards.PC, ["exit-pio", "exit-mmio"]), (bench_boards.ARM, ["exit-mmio"])):
            with mock.patch.object(bench_boards, "native", lambda board=board: board):
                experiment = bench_figures.exits()
                self.assertEqual([figure.key for figure in experiment.figures], keys)
                self.assertEqual(experiment.machine.command_line.count("exits "), len(keys))

    def test_firecracker_reads_its_machine_from_a_file(self):
        peer = Monitor("fc", Path("/fc"), "firecracker")
        machine = Machine(Path("/k"), "hello", disk=Path("/d"), tap="t0")
        with tempfile.TemporaryDirectory() as folder:
            command = peer.command(machine, folder)
            self.assertIn('"path_on_host": "/d"', Path(command[-1]).read_text())
        self.assertIsNone(peer.lacks(machine))
        machine.disk_queues = 2
        self.assertIsNotNone(peer.lacks(machine))


class Memory(unittest.TestCase):
    """The guest's own RAM does not count, the rest does."""

    def test_ram_in_one_piece(self):
        text = mapping(0x10000, 2 * MIB, MIB, 0) + mapping(1 << 40, 128 * MIB, 7 * MIB, 7 * MIB)
        text += mapping(1 << 41, MIB, MIB // 2, MIB // 2)
        # Much address space, and nothing in it.
        text += mapping(1 << 42, 1024 * MIB, 0, 0)
        self.assertEqual(bench_memory.measure(text, 128 * MIB), (MIB // 2, MIB))

    def test_ram_in_two_parts_side_by_side(self):
        text = mapping(1 << 40, 2 * MIB, MIB, MIB) + mapping((1 << 40) + 2 * MIB, 126 * MIB, 3 * MIB, 3 * MIB)
        text += mapping(1 << 41, 4 * MIB, MIB, MIB)
        self.assertEqual(bench_memory.measure(text, 128 * MIB), (MIB, 0))


class Clients(unittest.TestCase):
    """What is measured through the API."""

    def test_an_answer_in_pieces_and_one_without_a_body(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for piece in (b"HTTP/1.1 200 OK\r\ncontent-", b"length: 5\r\n\r\nhe", b"llo"):
                theirs.sendall(piece)
            self.assertEqual(bench_api.answer(ours), (200, b"hello"))
            theirs.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            self.assertEqual(bench_api.answer(ours), (204, b""))

    def test_hotplug_counts_from_the_call_to_the_guests_line(self):
        ours, theirs = socket.socketpair()
        lines = iter([("@@ pci-watch state=gone", 1), ("noise", 2), ("@@ pci-watch state=came", 10**18)])
        running = types.SimpleNamespace(began=0)
        with ours, theirs:
            theirs.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            took = bench_hotplug._until(running, ours, lines, "vm.add-disk", {"id": "d"}, "came")
            self.assertTrue(0 < took < 10**18)
            self.assertTrue(theirs.recv(4096).endswith(b'{"id": "d"}'))
            theirs.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}")
            with self.assertRaises(Failure):
                bench_hotplug._until(running, ours, lines, "vm.add-disk", {}, "came")

    def test_hotplug_is_of_a_machine_with_acpi_whose_guest_knows_the_registers_place(self):
        for board, words in ((bench_boards.PC, "hotplug=0x620"), (bench_boards.ARM, "at=0x9080000 ecam=0x30000000")):
            with mock.patch.object(bench_boards, "native", lambda board=board: board):
                machine = bench_hotplug.experiment().machine
            command = Monitor("vivarium", "/vivarium", "vivarium").command(machine, "/")
            self.assertIn(f"end=halt; pci-watch n={bench_hotplug.CYCLES} {words}", command)
            self.assertEqual(command[-2:], ["--platform", "acpi=on"])

    def test_the_start_of_many_is_shared_out(self):
        self.assertEqual(bench_many.per_machine([700, 400, 1000, 600], 200), 200)


class Reports(unittest.TestCase):
    """From samples to tables."""

    def summary(self, higher, own, peer, **goal):
        figure = Figure("f", "a figure", "ms", higher, **goal)
        conditions = {"monitors": {"vivarium": "v1", "other": "v2"}}
        samples = {"f": {"vivarium": own, "other": peer}}
        return bench_report.summary(conditions, [figure], samples, [], ["vivarium", "host", "other"])

    def test_a_ratio_is_taken_round_by_round(self):
        # The second round ran on a machine ten times slower; the peer failed in the third.
        row = self.summary(False, [1.0, 10.0, 1.0], [3.0, 30.0, None])["figures"][0]
        self.assertEqual(row["better_than"], {"other": 3.0})
        row = self.summary(True, [1.0], [4.0])["figures"][0]
        self.assertEqual(row["better_than"], {"other": 0.25})

    def test_goals(self):
        self.assertTrue(self.summary(False, [3.9], [1.0], goal=4.0)["figures"][0]["reached"])
        self.assertFalse(self.summary(True, [3.9], [1.0], goal=4.0)["figures"][0]["reached"])
        self.assertIn("**missed**", bench_report.markdown(self.summary(False, [5.0], [1.0], goal=4.0)))

    def test_a_run_fails_by_a_goal_that_binds(self):
        for figure, failures in [
            ({"goal": 64}, []),
            ({"goal": 64, "binding": True}, ["a figure: 65.0 ms; its goal is 64.0 ms"]),
            ({"goal": 65, "binding": True}, []),
        ]:
            self.assertEqual(bench_report.failures(self.summary(False, [65.0], [1.0], **figure)), failures)
        self.assertEqual(bench_report.failures(self.summary(False, [], [], goal=64, binding=True)), [])

    def test_numbers_are_short(self):
        shown = [bench_report.number(value) for value in (0, 12345.6, 12.345, 1.2345, 0.01234, 0.000123)]
        self.assertEqual(shown, ["0", "12346", "12.3", "1.23", "0.012", "0.00012"])

    def test_the_plot_is_well_formed(self):
        text = bench_plot.draw(self.summary(False, [1.0], [3.0]))
        self.assertEqual(xml.fromstring(text).tag, "{http://www.w3.org/2000/svg}svg")
        self.assertEqual(bench_plot.draw(self.summary(False, [], [])), "")

    def test_guest_lines(self):
        line = bench_guest.parse("blk-randread ops=12 source=kvm-clock odd", 7)
        self.assertEqual((line.task, line.values, line.arrived), ("blk-randread", {"ops": 12, "source": "kvm-clock"}, 7))


if __name__ == "__main__":
    unittest.main()
