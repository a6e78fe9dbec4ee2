"""Tests of these scripts that need nothing installed: `python3 -m unittest selftest` in this folder."""

import contextlib
import errno
import gzip
import io
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import disks
import ground
import kernels
import nested_host
import nested_kinds
import packages
import processors
import quickstart
import quickstart_check
import report
import results
import room
import suite_run
import tsc
from cpio import Archive
from python_programs import Unavailable


class Sources(unittest.TestCase):
    """apt's two source formats."""

    def test_one_line(self):
        text = "# deb http://no/ x main\ndeb [arch=amd64 signed-by=/k.gpg] http://m/debian bookworm main contrib # why\n"
        text += "deb-src http://m/debian bookworm main\n"
        self.assertEqual(
            packages._one_line_sources(text),
            [{"uri": "http://m/debian", "suites": ["bookworm"], "components": ["main", "contrib"], "signed-by": "/k.gpg"}],
        )

    def test_deb822_with_comments_folding_and_disabled_stanzas(self):
        text = "Types: deb deb-src\n# why\nURIs: http://m/debian\nSuites: trixie\n trixie-updates\nComponents: main\n"
        text += "\nEnabled: no\nTypes: deb\nURIs: http://m/off\nSuites: sid\nComponents: main\n"
        (entry,) = packages._deb822_sources(text)
        self.assertEqual(entry["uri"], "http://m/debian")
        self.assertEqual(entry["suites"], ["trixie", "trixie-updates"])

    def test_version_order_is_numeric(self):
        names = ["linux-image-6.1.0-10-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"]
        self.assertEqual(sorted(names, key=packages.version_order), names[::-1])


class Archives(unittest.TestCase):
    """What the kernel must be able to unpack."""

    def test_cpio_reads_it_back(self):
        if subprocess.run(["sh", "-c", "command -v cpio"], capture_output=True, check=False).returncode:
            self.skipTest("cpio is not installed")
        archive = Archive().file("a/b/c", b"x" * 5, 0o640).link("a/l", "b/c").program("run", "#!/bin/sh\n")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["cpio", "-i", "-d", "--quiet"], input=archive.bytes(), cwd=folder, check=True)
            self.assertEqual(Path(folder, "a/b/c").read_bytes(), b"xxxxx")
            self.assertEqual(os.readlink(Path(folder, "a/l")), "b/c")
            self.assertTrue(os.access(Path(folder, "run"), os.X_OK))

    def test_entries_are_aligned(self):
        data = Archive().file("odd", b"123").bytes()
        self.assertEqual(len(data) % 4, 0)
        second = data.index(b"070701", 1)
        self.assertEqual(second % 4, 0)


class Kernels(unittest.TestCase):
    """Taking a vmlinux out of a bzImage."""

    @staticmethod
    def image(payload):
        header = bytearray(1024)
        header[0x1F1] = 1
        header[0x202:0x206] = b"HdrS"
        struct.pack_into("<II", header, 0x248, 16, len(payload))
        return bytes(header) + b"\xcc" * 16 + payload

    def test_gzip(self):
        elf = b"\x7fELF" + bytes(100)
        self.assertEqual(kernels.extract_vmlinux(self.image(gzip.compress(elf) + struct.pack("<I", 104))), elf)

    def test_nonsense_is_refused(self):
        for data in (bytes(4096), self.image(b"what is this"), self.image(gzip.compress(b"no elf"))):
            with self.assertRaises(report.Failure):
                kernels.extract_vmlinux(data)

    def test_an_arm_image_may_be_compressed(self):
        image = bytes(56) + b"ARM\x64" + bytes(100)
        for file in (image, gzip.compress(image)):
            self.assertEqual(kernels.plain_image(file), image)
        for file in (b"MZ\0\0zimg" + bytes(100), gzip.compress(b"nothing"), b""):
            with self.assertRaisesRegex(report.Failure, "neither an Image"):
                kernels.plain_image(file)

    def test_modules_load_after_what_they_need(self):
        with tempfile.TemporaryDirectory() as folder:
            kernel = kernels.Kernel(Path(folder), "1")
            kernel.modules.mkdir(parents=True)
            (kernel.modules / "modules.dep").write_text("k/a.ko.xz: k/b-c.ko.xz k/d.ko.xz\nk/b-c.ko.xz: k/d.ko.xz\nk/d.ko.xz:\n")
            (kernel.modules / "modules.builtin").write_text("k/e.ko\n")
            modules = kernels.Modules(kernel)
            self.assertEqual(modules.closure(["e", "a", "no?"]), ["k/d.ko.xz", "k/b-c.ko.xz", "k/a.ko.xz"])
            with self.assertRaises(report.Failure):
                modules.closure(["no"])


class Processors(unittest.TestCase):
    """Programs of other processors."""

    def test_links_stay_in_the_root(self):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "usr/bin").mkdir(parents=True)
            (root / "bin").symlink_to("usr/bin")
            (root / "usr/bin/real").write_text("x")
            (root / "usr/bin/name").symlink_to("/bin/other")
            (root / "usr/bin/other").symlink_to("../../../../usr/bin/real")
            self.assertEqual(processors._resolved(root, "/bin/name"), root / "usr/bin/real")
            (root / "loop").symlink_to("loop")
            with self.assertRaises(OSError):
                processors._resolved(root, "/loop")

    def test_a_program_goes_to_the_host_it_is_built_for(self):
        with tempfile.NamedTemporaryFile() as file:
            for machine, kind in ((62, nested_kinds.PC), (183, nested_kinds.ARM)):
                Path(file.name).write_bytes(b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, machine))
                self.assertIs(nested_kinds.of_program(file.name), kind)
            Path(file.name).write_text("#!/bin/sh\n")
            self.assertIs(nested_kinds.of_program(file.name), nested_kinds.native())

    def test_each_has_a_usual_host(self):
        for name, kind in (("x86_64", nested_kinds.PC), ("aarch64", nested_kinds.ARM)):
            self.assertIs(nested_kinds.of_processor(processors.of_name(name)), kind)
            with mock.patch.object(os, "uname", lambda name=name: SimpleNamespace(machine=name)):
                self.assertIs(nested_kinds.native(), kind)
        with self.assertRaisesRegex(report.Failure, "not for riscv64"):
            processors.of_name("riscv64")

    def test_another_than_arm_is_not_emulated(self):
        with mock.patch.object(os, "uname", lambda: SimpleNamespace(machine="aarch64")):
            self.assertIn("not emulated", processors.available(processors.X86_64))
            self.assertIsNone(processors.available(processors.AARCH64))


class Ubuntu(unittest.TestCase):
    """Which of the archive's many kernels is taken."""

    def series(self, depends):
        with mock.patch.object(packages, "depends", lambda name: depends):
            return kernels._ubuntu_series()

    def test_the_one_for_virtual_machines(self):
        self.assertEqual(self.series("Depends: linux-image-6.8.0-151-generic, wireless-regdb"), "6.8")

    def test_guests_have_the_distributions_series_on_each_processor(self):
        for processor, debian in ((processors.X86_64, ["6.1", "6.12"]), (processors.AARCH64, ["6.12"])):
            for name, expected in (("ubuntu", ["6.8"]), ("debian", debian)):
                with (
                    mock.patch.object(packages, "release", lambda name=name: {"ID": name}),
                    mock.patch.object(packages, "depends", lambda name: "Depends: linux-image-6.8.0-151-generic"),
                ):
                    self.assertEqual(kernels.guest_series(processor), expected)

    def test_none_is_a_failure_that_says_what_to_look_at(self):
        with self.assertRaisesRegex(report.Failure, "component main"):
            self.series("")


class Reports(unittest.TestCase):
    """Counting tests."""

    JUNIT = """<testsuites><testsuite name="t">
      <testcase name="good" classname="t" time="16.25"><system-out>ok</system-out></testcase>
      <testcase name="bad" classname="t"><failure type="test failure"/><system-out>@@SKIP no</system-out></testcase>
      <testcase name="absent" classname="t"><system-out>running
@@SKIP no hugepages
</system-out></testcase>
      <testcase name="alone" classname="t"><system-out>running 1 test
test alone ... @@SKIP no 6.1
ok
</system-out></testcase></testsuite></testsuites>"""

    def test_junit(self):
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(self.JUNIT)
            file.flush()
            found = results.of_junit(file.name, 15)
            self.assertEqual(results.of_junit(file.name, 20).slow, [])
        self.assertEqual(found.slow, [("t good", 16.25)])
        self.assertEqual(found.summary(), "1 passed, 1 failed, 2 skipped")
        # Where there is one CPU, a test's name is printed before it is run.
        self.assertEqual(found.skipped, [("t absent", "no hugepages"), ("t alone", "no 6.1")])

    def test_only_a_few_tests_may_need_a_further_attempt(self):
        names = [f"test-{number}" for number in range(results.MOST_RETRIED + 1)]
        self.assertIsNone(results.Results(passed=90, retried=names[:-1]).too_many_retried())
        self.assertIn(names[-1], results.Results(passed=90, retried=names).too_many_retried())

    def test_libtest(self):
        text = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n"
        text += "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n"
        self.assertEqual(results.of_libtest(text).summary(), "4 passed, 2 failed, 1 skipped")
        shown = "\nsuccesses:\n\n---- a::first stdout ----\nread 3 files\n\n---- a::second stdout ----\n@@SKIP dtc is not installed\n\n"
        found = results.of_libtest(shown + "\nsuccesses:\n    a::first\n    a::second\n" + text)
        self.assertEqual(found.summary(), "3 passed, 2 failed, 2 skipped")
        self.assertIn(("a::second", "dtc is not installed"), found.skipped)


class Steps(unittest.TestCase):
    """Checks that are functions."""

    def call(self, action, **options):
        run = suite_run.Run(None)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            run.call("a check", action, **options)
        return run.results, said.getvalue()

    def test_what_a_check_raises_fails_it_alone(self):
        for raised, told in ((report.Failure("no", "why"), "why\nno"), (FileNotFoundError("debugfs"), "debugfs"), (KeyError("k"), "Traceback")):
            found, said = self.call(mock.Mock(side_effect=raised))
            self.assertEqual(found.summary(), "0 passed, 1 failed, 0 skipped")
            self.assertIn(told, said)
        found, _ = self.call(mock.Mock(side_effect=Unavailable("no venv")))
        self.assertEqual(found.skipped, [("a check", "no venv")])
        self.assertEqual(self.call(mock.Mock())[0].summary(), "1 passed, 0 failed, 0 skipped")


    def test_one_that_fails_may_be_made_again_and_is_named(self):
        failure = report.Failure("a timeout")
        for outcomes, summary, retried in (
            ([None], "1 passed, 0 failed, 0 skipped", []),
            ([failure, None], "1 passed, 0 failed, 0 skipped", ["a check"]),
            ([failure, failure], "0 passed, 1 failed, 0 skipped", []),
        ):
            action = mock.Mock(side_effect=outcomes)
            found, said = self.call(action, retries=1)
            self.assertEqual((found.summary(), found.retried), (summary, retried))
            self.assertEqual(action.call_count, len(outcomes))
            self.assertEqual("again" in said, len(outcomes) > 1)


    def test_tests_that_are_named_have_to_be_there(self):
        text = "test result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n"
        for passed, expected, failed in ((2, 2, 0), (0, 2, 1), (1, 2, 1), (3, 2, 1), (0, None, 0)):
            run = suite_run.Run(None)
            with (
                contextlib.redirect_stdout(io.StringIO()),
                mock.patch.object(suite_run, "captured", lambda *_, passed=passed: (0, text.format(passed), 0.0)),
            ):
                run.libtest("tests", ["test"], expected=expected)
            self.assertEqual((run.results.passed, run.results.failed), (passed, failed))


class QuickStart(unittest.TestCase):
    """scripts/quickstart, and what its check accepts."""

    ANSWERS = "machine: x86_64\r\n/dev/vda /data ext4 rw,relatime 0 0\r\n"

    def test_a_guest_without_a_network_will_do_only_where_nobody_may_make_one(self):
        with_network = self.ANSWERS + "64 bytes from 10.0.0.1\n"
        without = self.ANSWERS + "no network: making a tap takes root\n"
        judge = quickstart_check.judge
        judge(with_network, processors.X86_64, True)
        judge(without, processors.X86_64, False)
        for output, needed in ((without, True), (self.ANSWERS, True), (self.ANSWERS, False), (with_network.replace("vda", "vdb"), True)):
            with self.assertRaisesRegex(report.Failure, "there is no line"):
                judge(output, processors.X86_64, needed)

    def test_only_the_direct_ground_may_lack_a_network(self):
        for where, tap, needed in (("direct", False, False), ("direct", True, True), ("nested", False, True)):
            with (
                mock.patch.object(quickstart, "ground_of", lambda _, where=where: where),
                mock.patch.object(quickstart, "may_make_tap", lambda new_session, tap=tap: tap),
            ):
                self.assertIs(quickstart_check.network_needed(processors.X86_64), needed)

    def test_a_data_disk_of_a_debian_is_refused(self):
        options = SimpleNamespace(arch=None, debian=True, data="/disk")
        with self.assertRaisesRegex(report.Failure, "--data"):
            quickstart._check(options)

    def test_what_was_made_counts_for_the_room_that_is_needed(self):
        def places(folder):
            return dict.fromkeys(("TARGET", "CACHE", "PROJECT"), folder)

        with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(room, **places(Path(folder))):
            def left(mebibytes):
                return mock.patch.object(shutil, "disk_usage", lambda _: SimpleNamespace(free=mebibytes << 20))

            Path(folder, "made").write_bytes(bytes(10 << 20))
            Path(folder, "twice").hardlink_to(Path(folder, "made"))
            os.truncate(Path(folder, "made"), 2 << 30)  # a hole takes no room
            with left(1016):
                room.ensure(1, "it")
            with left(1012), self.assertRaisesRegex(report.Failure, r"it needs 101\d MiB more of disk space.* has 1012 MiB left"):
                room.ensure(1, "it")
            with left(511), self.assertRaisesRegex(report.Failure, "512 MiB"):
                room.ensure(0, "it")

    def test_a_data_disk_that_is_half_made_is_made_again(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "data.ext4")

            def make(image, size, label):
                image.write_text(size)
                if outcome:
                    raise outcome

            patches = {"_make_ext4": make, "lock": lambda name: contextlib.nullcontext()}
            with mock.patch.multiple(disks, **patches), mock.patch.object(packages, "ensure", lambda names: None):
                outcome = KeyboardInterrupt()
                with self.assertRaises(KeyboardInterrupt), contextlib.redirect_stderr(io.StringIO()):
                    disks.data(path)
                self.assertFalse(path.exists())
                outcome = None
                with contextlib.redirect_stderr(io.StringIO()):
                    disks.data(path)
            self.assertEqual([file.name for file in Path(folder).iterdir()], ["data.ext4"])

    # A machine that says what it is given, and ends when it is asked to, if twice.
    MACHINE = "import os, signal, sys; signal.signal(15, lambda *_: os._exit(3)); print('ready', flush=True)\nfor line in sys.stdin: print(line, end='', flush=True)"

    def started(self):
        script = f"""import sys, types, quickstart
quickstart.may_make_tap = lambda: False
guest = types.SimpleNamespace(disk=None, greet=lambda: None, command=lambda *_: [sys.executable, "-c", {self.MACHINE!r}])
sys.exit(quickstart._run_here(guest))
"""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-B", "-c", script], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )

    def test_what_comes_by_a_pipe_ends_by_leaving_the_shell(self):
        with self.started() as process:
            self.assertEqual(process.communicate("one\ntwo")[0], "ready\none\ntwo\nexit\n")
            self.assertEqual(process.returncode, 0)

    def test_the_machine_ends_with_it(self):
        for ask in (lambda process: process.terminate(), lambda process: quickstart_check.end(process)):
            with self.started() as process:
                process.stdin.write("one\n")
                process.stdin.flush()
                self.assertEqual([process.stdout.readline() for _ in range(2)], ["ready\n", "one\n"])
                ask(process)
                self.assertEqual(process.wait(), 3)


class Programs(unittest.TestCase):
    """Programs of installed packages."""

    def test_one_for_administrators_is_found_without_its_folder_on_the_path(self):
        with mock.patch.dict(os.environ, {"PATH": "/nowhere"}):
            with mock.patch.object(packages.shutil, "which", lambda name, path: f"/sbin/{name}" if "/sbin" in path.split(":") else None):
                self.assertEqual(packages.program("debugfs", "e2fsprogs"), "/sbin/debugfs")
            with self.assertRaisesRegex(report.Failure, "install the package nothing"):
                packages.program("no-such-program", "nothing")


class TimeStampCounter(unittest.TestCase):
    """The rate that the nested host's kernel is told."""

    @unittest.skipUnless(os.uname().machine == "x86_64", "x86_64 has such a counter")
    def test_it_is_one_a_processor_can_have_and_the_same_each_time(self):
        rates = [tsc.kilohertz() for _ in range(3)]
        self.assertTrue(all(500_000 < rate < 10_000_000 for rate in rates), rates)
        self.assertLess(max(rates) - min(rates), min(rates) / 1000)


class NestedJobs(unittest.TestCase):
    """The script that carries a command into the nested host."""

    def test_words_survive_and_status_is_the_commands(self):
        with tempfile.TemporaryDirectory() as folder:
            script = nested_host.job(["sh", "-c", 'printf "%s|" "$@"; pwd; exit 7', "x", "a b", "'q'", "$HOME"], folder)
            done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=False)
            self.assertEqual(done.stdout, f"a b|'q'|$HOME|{folder}\n")
            self.assertEqual(done.returncode, 7)

    def test_a_pc_tells_by_its_flags_whether_it_virtualizes(self):
        for flags, expected in (("fpu svm", True), ("fpu", False)):
            with (
                mock.patch.object(os, "uname", lambda: SimpleNamespace(machine="x86_64")),
                mock.patch("builtins.open", mock.mock_open(read_data=f"flags : {flags}\n")),
            ):
                self.assertIs(ground.hardware_virtualization(), expected)

    def test_an_arm_machine_needs_a_gic_v3(self):
        no_device = OSError(errno.ENODEV, "No such device")
        # Old kernels have 40 address bits and do not know the question; some hosts have fewer.
        for bits, kind, gic, expected in ((0, 0, b"", True), (36, 36, b"", True), (48, 40, b"", True), (40, 40, no_device, False)):
            asked = {}

            def ioctl(_, number, argument, bits=bits, gic=gic, asked=asked):
                asked[number] = argument
                if number == ground.KVM_CREATE_DEVICE and isinstance(gic, OSError):
                    raise gic
                return {ground.KVM_CHECK_EXTENSION: bits, ground.KVM_CREATE_VM: 99}.get(number, gic)

            with (
                mock.patch.object(os, "uname", lambda: SimpleNamespace(machine="aarch64")),
                mock.patch("builtins.open", mock.mock_open()),
                mock.patch.object(ground.fcntl, "ioctl", ioctl),
                mock.patch.object(os, "close") as close,
            ):
                self.assertIs(ground.hardware_virtualization(), expected)
                close.assert_called_once_with(99)
            self.assertEqual(asked[ground.KVM_CREATE_VM], kind)
            self.assertEqual(asked[ground.KVM_CREATE_DEVICE], struct.pack("III", 7, 0, 1))

    def test_a_wrong_choice_of_ground_is_refused(self):
        old = os.environ.get("VIVARIUM_GROUND")
        os.environ["VIVARIUM_GROUND"] = "elsewhere"
        try:
            with self.assertRaises(report.Failure):
                ground.ground()
        finally:
            if old is None:
                del os.environ["VIVARIUM_GROUND"]
            else:
                os.environ["VIVARIUM_GROUND"] = old


if __name__ == "__main__":
    unittest.main()
