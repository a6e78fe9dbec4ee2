"""Initramfs archives in the kernel's `newc` cpio form (Documentation/driver-api/early-userspace/buffer-format.rst),
written without root: device nodes and owners exist only in the archive. The same input gives the same bytes."""

import stat
from pathlib import PurePosixPath


class Archive:
    """Entries in order; parent folders are added by themselves."""

    def __init__(self):
        self._entries = {}  # path -> (mode, data, device numbers)

    def folder(self, path, mode=0o755):
        """Adds a folder and those above it."""
        path = PurePosixPath(path)
        if str(path) != "." and str(path) not in self._entries:
            self.folder(path.parent)
            self._entries[str(path)] = (stat.S_IFDIR | mode, b"", (0, 0))
        return self

    def file(self, path, data, mode=0o644):
        """Adds a file with the given bytes."""
        return self._add(path, stat.S_IFREG | mode, data if isinstance(data, bytes) else data.encode())

    def program(self, path, data):
        """Adds an executable file."""
        return self.file(path, data, 0o755)

    def link(self, path, target):
        """Adds a symbolic link."""
        return self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path, major, minor, mode=0o600):
        """Adds a device node."""
        return self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def bytes(self):
        """The archive."""
        parts = []
        for inode, (path, (mode, data, device)) in enumerate(self._entries.items(), start=1):
            parts.append(_record(path, inode, mode, data, device))
        parts.append(_record("TRAILER!!!", 0, 0, b"", (0, 0)))
        return b"".join(parts)

    def _add(self, path, mode, data, device=(0, 0)):
        self.folder(PurePosixPath(path).parent)
        self._entries[str(path)] = (mode, data, device)
        return self


def _record(path, inode, mode, data, device):
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(data)


def _padded(data):
    return data + b"\0" * (-len(data) % 4)
