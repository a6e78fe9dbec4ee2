"""Where things are: the project, and the cache of everything that can be made again."""

import fcntl
import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

# scripts/lib/places.py -> the project's root
PROJECT = Path(__file__).resolve().parent.parent.parent

# Cargo's output; the same folder for every part of scripts/test, so that nothing is built twice.
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or PROJECT / "target")

# Kernels, initramfs images, disks, the nested host and tools built from source. Safe to delete.
CACHE = Path(os.environ.get("VIVARIUM_CACHE") or PROJECT / "target" / "guests").absolute()

VIVARIUM = TARGET / "release" / "vivarium"
BARE_GUEST = PROJECT / "target" / "guest" / "guest.elf"

def cache(*parts):
    """A folder of the cache, made when missing."""
    folder = CACHE.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder

def fingerprint(*parts):
    """A short key that changes when any part does. Paths count with their contents, all else as text."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]

def replace(path, data, mode=0o644):
    """Writes a file so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data if isinstance(data, bytes) else data.encode())
    temporary.chmod(mode)
    temporary.rename(path)


@contextmanager
def lock(name):
    """Held by one process at a time; others wait. Ends with the process, however that ends."""
    with open(cache("locks") / name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
