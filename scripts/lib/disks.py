"""Disk images for the quick start: an empty ext4 data disk, and a Debian root file system."""

import os

import packages
from places import cache, lock
from report import run, step

DATA_MIB = 256
ROOT_GIB = 2

ROOT_PACKAGES = ["apt", "systemd-sysv", "udev", "dbus", "iproute2", "iputils-ping", "procps", "less", "vim-tiny", "ca-certificates"]

# In the new root: a login without password, and a name. An empty machine-id is filled at each boot.
ROOT_SETUP = """set -e
chroot "$1" passwd -d root >/dev/null
echo vivarium >"$1/etc/hostname"
echo "127.0.0.1 localhost vivarium" >"$1/etc/hosts"
echo "/dev/vda / ext4 defaults,noatime 0 1" >"$1/etc/fstab"
: >"$1/etc/machine-id"
"""


def data(path):
    """An ext4 disk that keeps its contents from run to run, made at `path` when there is none."""
    with lock("data-disk"):
        if not path.exists():
            packages.ensure(["e2fsprogs"])
            with step("making the data disk"):
                # One that is half made stays behind when this is interrupted, under a name that nobody uses.
                temporary = path.with_name(f"{path.name}.part")
                _make_ext4(temporary, f"{DATA_MIB}M", "data")
                temporary.rename(path)
    return path


def debian():
    """A root file system of this machine's own release, made from its own mirror; kept from run to run."""
    release = packages.codename()
    path = cache() / f"root-{release}.ext4"
    with lock("root-disk"):
        if not path.exists():
            packages.ensure(["mmdebstrap", "e2fsprogs"])
            with step(f"making a {packages.release().get('NAME', release)} root disk, which takes a minute or two"):
                _make_root(path, release)
    return path


def _make_root(path, release):
    tree = cache("work") / "root"
    hook = cache("work") / "root-setup"
    hook.write_text(f"#!/bin/sh\n{ROOT_SETUP}")
    hook.chmod(0o755)
    # Files of many owners: only root can keep them, in the tree as in the image.
    remove = packages.as_root(["rm", "-rf", "--one-file-system", str(tree)])
    run(remove, "removing an old tree")
    source = packages.main_source()
    signed = f"[signed-by={source['signed-by']}] " if source["signed-by"].startswith("/") else ""
    components = "main universe" if packages.is_ubuntu() else "main"
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(ROOT_PACKAGES)}"]
    command += ["--aptopt=APT::Sandbox::User \"root\"", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    command += ["--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
    command += [*_apt_access(), f"--customize-hook={hook} \"$1\"", release, str(tree)]
    command += [f"deb {signed}{source['uri']} {release} {components}"]
    try:
        run(packages.as_root(command), "making a root file system")
        temporary = path.with_suffix(".part")
        _make_ext4(temporary, f"{ROOT_GIB}G", "root", tree=tree)
        temporary.rename(path)
    finally:
        run(remove, "removing the tree")


def unpack(tree, architecture, names):
    """Unpacks packages of an architecture, and all they need, without running anything of theirs: a root file system's files."""
    release = packages.codename()
    run(packages.as_root(["rm", "-rf", "--one-file-system", str(tree)]), "removing an old tree")
    source = packages.main_source()
    signed = f"[signed-by={source['signed-by']}] " if source["signed-by"].startswith("/") else ""
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", f"--architectures={architecture}"]
    command += [f"--include={','.join(names)}", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    command += ['--aptopt=APT::Sandbox::User "root"', *_apt_access(), release, str(tree)]
    command += [f"deb {signed}{source['uri']} {release} main"]
    run(packages.as_root(command), "unpacking a root file system")
    # Links that the packages' own scripts would make, and folders that are mounted on.
    for folder in ("dev", "proc", "sys", "run", "share", "scratch", "root", "mnt", "var/tmp"):
        run(packages.as_root(["mkdir", "-p", str(tree / folder)]), "making folders")
    awk = tree / "usr" / "bin" / "awk"
    if not awk.exists():
        run(packages.as_root(["ln", "-sf", "/bin/busybox", str(awk)]), "linking programs")


def _apt_access():
    """How this machine's apt reaches its mirror: logins, certificates and proxies, if any."""
    options = []
    if os.path.isdir("/etc/apt/auth.conf.d"):
        options.append('--aptopt=Dir::Etc::netrcparts "/etc/apt/auth.conf.d"')
    settings = run(["apt-config", "dump", "--format", "%F \"%v\";%n", "Acquire"], "reading apt's settings")
    for line in settings.splitlines():
        if ("proxy" in line.lower() or "::https::" in line.lower()) and not line.endswith('"";'):
            options.append(f"--aptopt={line}")
    return options


def _make_ext4(path, size, label, tree=None):
    path.unlink(missing_ok=True)
    command = [packages.program("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-L", label, "-m", "0"]
    if tree is None:
        run([*command, path, size], f"making {path.name}")
        return
    run(packages.as_root([*command, "-d", str(tree), str(path), size]), f"making {path.name}")
    run(packages.as_root(["chown", f"{os.getuid()}:{os.getgid()}", str(path)]), f"handing over {path.name}")
