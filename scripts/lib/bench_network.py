"""A tap, and a sender that puts frames on it without costing much of the machine that is measured.

Frames go through a packet socket's transmit ring (Documentation/networking/packet_mmap.rst): hundreds with one call."""

import mmap
import os
import socket
import struct
import threading
from contextlib import contextmanager

from packages import as_root
from report import Failure, run

# linux/if_packet.h, linux/if_tun.h
SOL_PACKET = 263
PACKET_TX_RING = 13
PACKET_QDISC_BYPASS = 20
TP_STATUS_SEND_REQUEST = 1
HEADER_BYTES = 32  # sizeof(struct tpacket_hdr)
DATA_OFFSET = HEADER_BYTES  # TPACKET_ALIGN(tpacket_hdr), sockaddr_ll not counted for sending
FRAME_BYTES = 2048
FRAMES = 256
ETHER_TYPE = 0x88B5


class Tap:
    """A tap of this name, made for a run of a monitor and removed after it."""

    def __init__(self, name):
        self.name = name

    def make(self):
        """Makes it, up, with nothing of the host's own on it."""
        self.remove()
        run(as_root(["ip", "tuntap", "add", "dev", self.name, "mode", "tap", "vnet_hdr", "user", str(os.getuid())]),
            "making a tap")  # fmt: skip
        run(as_root(["ip", "link", "set", "dev", self.name, "addrgenmode", "none"]), "setting up the tap")
        run(as_root(["ip", "link", "set", "dev", self.name, "up"]), "setting up the tap")

    def remove(self):
        """Removes it, if it is there."""
        if os.path.exists(f"/sys/class/net/{self.name}"):
            run(as_root(["ip", "link", "delete", "dev", self.name]), "removing the tap")

    @contextmanager
    def sending(self, size):
        """Sends frames of `size` bytes, as fast as the tap takes them, for as long as the context lasts."""
        stop = threading.Event()
        sender = threading.Thread(target=_send, args=(self.name, size, stop), daemon=True)
        sender.start()
        try:
            yield
        finally:
            stop.set()
            sender.join()


def why_not():
    """Why no tap can be made and used here, or None."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        return "packets can be sent on a tap by root only"
    tap = Tap(f"vivbench{os.getpid() % 10000}")
    try:
        tap.make()
        tap.remove()
    except Failure as failure:
        return str(failure)
    return None


def _send(name, size, stop):
    frame = b"\xff" * 6 + b"\x02\0\0\0\0\x02" + struct.pack(">H", ETHER_TYPE) + bytes(size - 14)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        ring_bytes = FRAME_BYTES * FRAMES
        sender.setsockopt(SOL_PACKET, PACKET_TX_RING, struct.pack("4I", ring_bytes, 1, FRAME_BYTES, FRAMES))
        with mmap.mmap(sender.fileno(), ring_bytes) as ring:
            sender.bind((name, ETHER_TYPE))
            # tp_status, tp_len; the kernel clears the status of a frame when it is sent.
            header = struct.pack("QI", TP_STATUS_SEND_REQUEST, size)
            for index in range(FRAMES):
                start = index * FRAME_BYTES + DATA_OFFSET
                ring[start : start + size] = frame
            while not stop.is_set():
                for offset in range(0, ring_bytes, FRAME_BYTES):
                    ring[offset : offset + len(header)] = header
                try:
                    sender.send(b"")
                except OSError:
                    # The monitor has not brought the tap up yet, or it is full: look again soon.
                    stop.wait(0.001)
