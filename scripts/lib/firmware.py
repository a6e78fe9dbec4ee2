"""What machines that start in EFI firmware boot, in the folder that tests find in VIVARIUM_GUESTS:

    AAVMF_CODE.fd, AAVMF_VARS.fd  firmware, and the template of its variables, as the distribution ships them
    efi-6.12.img                  a disk with a boot loader, GRUB, that boots the kernel of that series

The kernel on the disk speaks on the serial port, and its init runs the script that the guest's second disk holds, up to the
first NUL."""

import base64
import os
import shutil
from pathlib import Path

import packages
from places import cache, fingerprint, lock, replace
from report import Failure, run, step

FILES = ["AAVMF_CODE.fd", "AAVMF_VARS.fd"]

# Run by the guest's init.
STUB = 'tr -d "\\000" </dev/vdb >/tmp/script; . /tmp/script'

# Where the boot loader looks for what it is to do, and where firmware looks for the boot loader.
CONFIG = "EFI/debian/grub.cfg"
LOADER = "EFI/BOOT/BOOTAA64.EFI"

CONFIG_TEXT = f"""linux /vmlinuz console=ttyAMA0 quiet panic=-1 random.trust_cpu=on viv.run={base64.b64encode(STUB.encode()).decode()}
initrd /initramfs.cpio
boot
"""


def ensure(place, processor, series):
    """Makes what is missing or out of date. `place` has the kernel and the initramfs of the series."""
    with lock(f"firmware-{processor.name}"):
        for name in FILES:
            path = place / name
            if not path.exists():
                _link(path, _unpacked("qemu-efi-aarch64", None) / "usr/share/AAVMF" / name)
        foreign = None if processor.native else processor.debian
        loader = _unpacked("grub-efi-arm64-bin", foreign) / "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi"
        _disk(place / f"efi-{series}.img", loader, place / f"vmlinuz-{series}", place / f"initramfs-{series}.cpio")


def _unpacked(package, architecture):
    """The folder with a package's files, which are not installed: what runs there is for another machine."""
    folder = cache("firmware") / package
    done = folder.with_suffix(".done")
    if not done.exists():
        with step(f"fetching {package}"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            file = packages.download(package, folder, architecture)
            run(["dpkg-deb", "-x", file, folder], f"unpacking {package}")
            file.unlink()
            replace(done, "")
    return folder


def _link(path, source):
    if not source.exists():
        raise Failure(f"there is no {source.name} in its package: {source}")
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(source, path.parent))


def _disk(path, loader, kernel, initramfs):
    """A disk that is one FAT file system, as firmware boots it."""
    wanted = fingerprint(loader, kernel, initramfs, CONFIG_TEXT)
    done = path.with_suffix(".done")
    if path.exists() and done.exists() and done.read_text() == wanted:
        return
    packages.ensure(["dosfstools", "mtools"])
    config = cache("work") / "grub.cfg"
    config.write_text(CONFIG_TEXT)
    files = {loader: LOADER, config: CONFIG, kernel: "vmlinuz", initramfs: "initramfs.cpio"}
    size = sum(file.stat().st_size for file in files) + (8 << 20)
    with step(f"making {path.name}"):
        temporary = path.with_suffix(".part")
        temporary.unlink(missing_ok=True)
        run([_format(), "-F", "32", "-C", temporary, str(max(size >> 10, 40 << 10))], "making a FAT file system")
        for folder in ("EFI", "EFI/BOOT", "EFI/debian"):
            run(["mmd", "-i", temporary, f"::{folder}"], "making folders")
        for file, name in files.items():
            run(["mcopy", "-i", temporary, file, f"::{name}"], f"copying {name}")
        temporary.rename(path)
        replace(done, wanted)


def _format():
    """mkfs.vfat, which is not on an ordinary user's PATH."""
    program = shutil.which("mkfs.vfat", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not program:
        raise Failure("mkfs.vfat is missing although the package dosfstools is installed")
    return Path(program)
