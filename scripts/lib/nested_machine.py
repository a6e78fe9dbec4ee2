"""One QEMU process that is a nested host, and the conversation with its first process (`nested-init`).

QEMU emulates a whole machine in software, virtualization extensions included, so a Linux inside has a complete `/dev/kvm` on
any host. Which machine, a `Kind` says (`nested_kinds`). Each port of the conversation is a UNIX socket on which this process listens and to which
QEMU connects, so nothing is sent before both ends are there."""

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from report import Failure, tail

SLOTS = 4
PORTS = ("control", "stdin", "stdout", "stderr", "terminal")

# Output that is still on its way when the command has ended, from processes that it left behind.
LEFTOVER_SECONDS = 0.5

# Of each machine's folder of sockets and logs; the owner's process id follows.
FOLDER_PREFIX = "vivarium-nested-"


class TimedOut(Failure):
    """The command did not end in the time it was given."""


class Machine:
    """A running nested host; use as a context manager, which ends it and removes its folder."""

    def __init__(self, kind, kernel, initramfs, memory_file, restore_from=None):
        _remove_orphans()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
        self.share = self.folder / "share"
        self.share.mkdir()
        self._received = b""
        self._process = None
        self._slots = iter(range(SLOTS))
        self.ports = {}
        try:
            self._start(kind, kernel, initramfs, memory_file, restore_from)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends QEMU and removes all that belongs to this machine."""
        for port in self.ports.values():
            port.close()
        self.ports = {}
        if self._process:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, text):
        """One order for `nested-init`."""
        try:
            self.ports["control"].sendall(text.encode() + b"\n")
        except OSError:
            raise self.died() from None

    def wait_for(self, word, seconds):
        """Waits for a control line that starts with `word`, and returns the rest of it."""
        end = time.monotonic() + seconds
        control = self.ports["control"]
        while True:
            for line in self._lines():
                first, _, rest = line.partition(" ")
                if first == word:
                    return rest
            control.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = control.recv(4096)
            except TimeoutError:
                raise Failure(f"nested host: no `{word}` within {seconds} s", self.serial()) from None
            except OSError:
                data = b""
            if not data:
                raise self.died()
            self._received += data

    def run(self, job, root, folders, modules, standard_input=None, terminal=None, seconds=None):
        """Runs the shell script `job` in `root`, a folder of the outer machine, relaying its streams to this process's own, and
        returns its exit status. `folders` are others of the outer machine's, seen there at their own paths.

        `standard_input`: a file descriptor to pass on; None gives end of file at once. `terminal`: a `Terminal` that
        takes the place of the three streams. `modules`: the folder that is to be /lib/modules."""
        (self.share / "job").write_text(job)
        (self.share / "root").write_text(f"{str(root).rstrip('/')}\n")
        (self.share / "folders").write_text("".join(f"{folder}\n" for folder in folders))
        (self.share / "modules").write_text(f"{modules}\n")
        mode, size = ("tty", terminal.size()) if terminal else ("pipe", (0, 0))
        self.send(f"begin {mode} {size[0]} {size[1]} {int(time.time())}")
        return _Relay(self, standard_input, terminal, seconds).run()

    def qmp(self, command, **arguments):
        """Runs one command of QEMU's monitor and returns its answer."""
        self._qmp.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._qmp.flush()
        for line in self._qmp:
            reply = json.loads(line)
            if "error" in reply:
                raise Failure(f"QEMU refused {command}: {reply['error'].get('desc')}")
            if "return" in reply:
                return reply["return"]
        raise self.died()

    def attach_disk(self, path, serial):
        """Plugs in a raw image as a virtio disk with that serial number; what is written to it stays."""
        slot = next(self._slots, None)
        if slot is None:
            raise Failure(f"nested host: no free slot for the disk {path}")
        # A disk added during a restore would be taken as another machine's, and never be written.
        while self.qmp("query-status")["status"] == "inmigrate":
            time.sleep(0.01)
        backend = {"driver": "file", "filename": str(path), "discard": "unmap"}
        try:
            self.qmp("blockdev-add", **{"node-name": serial, "driver": "raw", "file": backend, "discard": "unmap"})
        except Failure as failure:
            raise Failure(f"the disk {path} cannot be used: {failure}") from None
        self.qmp("device_add", driver="virtio-blk-pci", drive=serial, serial=serial, bus=f"slot{slot}")

    def serial(self):
        """What the nested host's kernel said last."""
        text = _text(self.folder / "serial")
        return f"--- the nested host's kernel log ends:\n{tail(text)}" if text.strip() else ""

    def died(self):
        """The failure that describes why QEMU is gone."""
        # QEMU lists, at each start, what its CPU model lacks: no part of any failure.
        said = "\n".join(line for line in _text(self.folder / "qemu.log").splitlines() if "TCG doesn't support" not in line)
        return Failure("the nested host ended unexpectedly", f"{self.serial()}\n{said}".strip())

    def received(self):
        """Takes what has arrived on the control port; None when the machine is gone, else its whole lines."""
        try:
            data = self.ports["control"].recv(4096)
        except OSError:
            data = b""
        if not data:
            return None
        self._received += data
        return list(self._lines())

    def _lines(self):
        while b"\n" in self._received:
            line, self._received = self._received.split(b"\n", 1)
            yield line.decode(errors="replace").strip()

    def _start(self, kind, kernel, initramfs, memory_file, restore_from):
        listeners = {}
        for name in (*PORTS, "qmp"):
            listeners[name] = socket.socket(socket.AF_UNIX)
            listeners[name].bind(str(self.folder / name))
            listeners[name].listen(1)
        command = qemu_command(kind, kernel, initramfs, memory_file, self.folder, bool(restore_from))
        if restore_from:
            command += ["-incoming", "defer"]
        with open(self.folder / "qemu.log", "w") as log:
            # Never outlives this process, even if it is killed.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            for name, listener in listeners.items():
                listener.settimeout(0.05)
                self.ports[name] = self._accept(listener)
        finally:
            for listener in listeners.values():
                listener.close()
        self._qmp = self.ports.pop("qmp").makefile("rw")
        self._qmp.readline()
        self.qmp("qmp_capabilities")
        # RAM stays in its file: a snapshot's state is what the devices hold.
        ignore_shared = {"capability": "x-ignore-shared", "state": True}
        self.qmp("migrate-set-capabilities", capabilities=[ignore_shared])
        if restore_from:
            self.qmp("migrate-incoming", uri=f"file:{restore_from}")

    def _accept(self, listener):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                connection, _ = listener.accept()
                connection.settimeout(None)
                return connection
            except TimeoutError:
                if self._process.poll() is not None:
                    raise self.died() from None
        raise Failure("nested host: QEMU does not connect within 60 s", _text(self.folder / "qemu.log"))


def qemu_command(kind, kernel, initramfs, memory_file, folder, restored):
    """QEMU's command line, without the ways in and out of a snapshot."""
    # Restored, the file is mapped copy-on-write: many machines start from one.
    shared = "off" if restored else "on"
    command = [kind.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-M", f"{kind.machine},memory-backend=ram", *kind.options, "-m", kind.memory]
    command += ["-object", f"memory-backend-file,id=ram,size={kind.memory},mem-path={memory_file},share={shared}"]
    command += ["-kernel", str(kind.kernel_file(kernel)), "-initrd", str(initramfs), "-append", kind.command_line()]
    command += ["-serial", f"file:{folder}/serial", "-qmp", f"unix:{folder}/qmp"]
    command += ["-device", "virtio-serial-pci,id=ports,max_ports=8"]
    for number, name in enumerate(PORTS, start=1):
        port = "virtconsole,nr=0" if name == "terminal" else f"virtserialport,nr={number},name={name}"
        command += ["-chardev", f"socket,id={name},path={folder}/{name}", "-device", f"{port},chardev={name},bus=ports.0"]
    for tag, path, options in (("outer", "/", ",readonly=on"), ("share", f"{folder}/share", "")):
        command += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{options}"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    # The way out, for packages and name look-ups, without any right on the outer machine.
    command += ["-netdev", "user,id=outside", "-device", "virtio-net-pci,netdev=outside,romfile="]
    # Where devices are plugged in after a restore: a snapshot cannot hold what differs from run to run.
    for number in range(SLOTS):
        command += ["-device", f"pcie-root-port,id=slot{number},chassis={number},slot={number}"]
    return [*command, *kind.devices]


class _Relay:
    """Moves bytes between a command in the nested host and this process until the command ends."""

    def __init__(self, machine, standard_input, terminal, seconds):
        self._machine = machine
        self._terminal = terminal
        self._end = time.monotonic() + seconds if seconds else None
        self._seconds = seconds
        self._status = None
        self._to_guest = b""
        self._selector = selectors.PollSelector()
        self._input = standard_input
        ports = machine.ports
        if terminal:
            self._guest_input = ports["terminal"]
            self._outputs = {ports["terminal"]: 1}
        else:
            self._guest_input = ports["stdin"]
            self._outputs = {ports["stdout"]: 1, ports["stderr"]: 2}

    def run(self):
        """Returns the command's exit status."""
        ports = self._machine.ports
        for port in ports.values():
            port.setblocking(False)
        self._selector.register(ports["control"], selectors.EVENT_READ, self._control)
        for port in self._outputs:
            self._selector.register(port, selectors.EVENT_READ, self._output)
        if self._input is None:
            self._close_input()
        else:
            self._selector.register(self._input, selectors.EVENT_READ, self._read_input)
        if self._terminal:
            self._selector.register(self._terminal.resized, selectors.EVENT_READ, self._resize)
        while self._status is None or not self._drained:
            for key, _ in self._selector.select(self._patience()):
                key.data(key.fileobj)
        for port in self._outputs:
            self._output(port)
        return self._status

    _drained = False

    def _patience(self):
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left > 0:
            return left
        if self._status is not None:
            self._drained = True
            return 0
        raise TimedOut(f"the command did not end within {self._seconds} s", self._machine.serial())

    def _control(self, _):
        lines = self._machine.received()
        if lines is None:
            self._flush()
            raise self._machine.died()
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "exit":
                self._status = int(rest)
                self._end = time.monotonic() + LEFTOVER_SECONDS
            elif word == "end":
                self._drained = True

    def _flush(self):
        for port in self._outputs:
            self._output(port)

    def _output(self, port):
        while True:
            try:
                data = port.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                if port in self._selector.get_map():
                    self._selector.unregister(port)
                return
            _write_all(self._outputs[port], data)

    def _read_input(self, source):
        data = os.read(source, 1 << 16)
        if self._terminal and data:
            data = self._terminal.typed(data)
        self._to_guest += data
        self._selector.unregister(source)
        if not data:
            self._input = None
            if not self._to_guest:
                self._close_input()
                return
        self._watch_guest_input(self._send_input)

    def _send_input(self, port):
        try:
            sent = port.send(self._to_guest)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._to_guest)
        self._to_guest = self._to_guest[sent:]
        if self._to_guest:
            return
        self._watch_guest_input(None)
        if self._input is None:
            self._close_input()
        else:
            self._selector.register(self._input, selectors.EVENT_READ, self._read_input)

    def _watch_guest_input(self, sender):
        # On a terminal, one socket carries both directions.
        port = self._guest_input
        if port in self._selector.get_map():
            self._selector.unregister(port)
        reader = self._output if port in self._outputs else None
        events = (selectors.EVENT_READ if reader else 0) | (selectors.EVENT_WRITE if sender else 0)

        def ready(port):
            if reader:
                reader(port)
            if sender:
                sender(port)

        if events:
            self._selector.register(port, events, ready)

    def _close_input(self):
        """End of file for the command; a terminal has none."""
        if not self._terminal:
            # Closing it whole would make QEMU drop what it has not read yet.
            with contextlib.suppress(OSError):
                self._guest_input.shutdown(socket.SHUT_WR)

    def _resize(self, source):
        os.read(source, 64)
        rows, columns = self._terminal.size()
        self._machine.send(f"size {rows} {columns}")


def _remove_orphans():
    """Removes folders whose owner was killed before it could."""
    for folder in Path(tempfile.gettempdir()).glob(FOLDER_PREFIX + "*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _write_all(descriptor, data):
    while data:
        data = data[os.write(descriptor, data) :]


def _text(path):
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
