"""The Rust toolchain: the person's own where it is new enough, else the distribution's; and cargo's extra commands."""

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from functools import cache
from pathlib import Path

import packages
import processors
from places import PROJECT, TARGET
from report import Failure, run, step

# Versions of what is built from source when missing. Any version already installed will do.
TOOLS = {"cargo-nextest": "0.9.143", "cargo-deny": "0.20.2", "cargo-fuzz": "0.13.2"}

# Without what only serves to update themselves: most of the build.
FEATURES = {"cargo-nextest": ["--no-default-features", "--features", "default-no-update"]}

# What the workspace needs besides Rust: a linker, and certificates to fetch crates.
COMPILER = ["gcc", "libc6-dev", "binutils", "ca-certificates"]

# Where the distribution keeps a Rust as new as its browsers need.
DISTRIBUTION_RUST = {"bookworm": ["rustc-web", "cargo-web", "rust-web-clippy", "rustfmt-web"]}

# What rustup installs. The code is kept free of this one's lints; those of later ones are not known yet.
TOOLCHAIN = "1.95.0"

# What runs on an emulated processor is optimized, but not for the last per cent, which takes minutes to build.
CROSS_BUILD = {"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16"}

# These are run a few times and never delivered: building them fast counts more than their speed.
QUICK_BUILD = {"CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_PROFILE_DEV_OPT_LEVEL": "0"}


def ensure():
    """Makes sure of a linker and of a Rust as new as the workspace's `rust-version`, and puts cargo on PATH."""
    packages.ensure(COMPILER)
    _extend_path()
    if _new_enough():
        return
    _install()
    _extend_path()
    if not _new_enough():
        # The distribution's newer one is a security update.
        lacks = packages.codename() in DISTRIBUTION_RUST
        remedy = f"add {packages.codename()}-security to apt's sources, or install it with rustup" if lacks else "install it with rustup"
        raise Failure(f"Rust {_wanted()} or newer is needed, found {_version() or 'none'}: {remedy}")


def compiler(processor):
    """The words that begin a rustc command for a processor, with what it needs installed."""
    if processor.native:
        ensure()
        return ["rustc"]
    environment = ensure_cross(processor)
    linker = f"linker={processor.tool('gcc')}"
    return [environment.get("RUSTC", "rustc"), "--target", processor.target, "-C", linker]


def ensure_cross(processor):
    """Makes sure of a compiler for another processor, and returns the environment in which `cargo(environment)` builds static
    programs for it and runs its tests in user-mode emulation."""
    suite = "bookworm-backports" if packages.codename() == "bookworm" else None
    packages.ensure([f"gcc-{processor.name}-linux-gnu", f"libc6-dev-{processor.debian}-cross"])
    packages.ensure(["qemu-user"], suite=suite)
    variable = processor.target.upper().replace("-", "_")
    environment = {
        **CROSS_BUILD,
        "CARGO_TARGET_DIR": str(cross_target(processor)),
        f"CARGO_TARGET_{variable}_LINKER": processor.tool("gcc"),
        f"CARGO_TARGET_{variable}_RUNNER": f"qemu-{processor.name}",
        f"CARGO_TARGET_{variable}_RUSTFLAGS": "-C target-feature=+crt-static",
        f"CC_{processor.target.replace('-', '_')}": processor.tool("gcc"),
    }
    if packages.codename() in DISTRIBUTION_RUST:
        # The distribution's compiler, whoever's else is on PATH: the standard library for another processor has to be of exactly
        # its version.
        packages.ensure(DISTRIBUTION_RUST[packages.codename()])
        _ensure_library(processor)
        path = f"/usr/bin:{os.environ['PATH']}"
        return environment | {"RUSTC": "/usr/bin/rustc", "CARGO": "/usr/bin/cargo", "RUSTDOC": "/usr/bin/rustdoc", "PATH": path}
    ensure()
    run(["rustup", "target", "add", processor.target], f"installing Rust's library for {processor.name}")
    return environment


def cross_target(processor):
    """Where cargo puts what it builds for another processor."""
    return TARGET / processor.name


def cargo(environment):
    """The cargo that fits an environment of `ensure_cross`."""
    return environment.get("CARGO", "cargo")


def _ensure_library(processor):
    """Unpacks the distribution's standard library for another processor. Installing its package would bring that processor's
    compiler along."""
    version = run(["/usr/bin/rustc", "--version"], "asking the compiler's version")
    sysroot = Path(run(["/usr/bin/rustc", "--print", "sysroot"], "asking the compiler's place").strip())
    mark = sysroot / "lib" / "rustlib" / processor.target / "of"
    if mark.exists() and mark.read_text() == version:
        return
    processors.know_packages(processor)
    with step(f"unpacking Rust's library for {processor.name}"), tempfile.TemporaryDirectory() as folder:
        file = packages.download("libstd-rust-web-dev", folder, processor.debian)
        command = f"dpkg-deb --fsys-tarfile {file} | tar -x -C / ./usr/lib/rustlib/{processor.target}"
        run(packages.as_root(["sh", "-ec", command]), f"unpacking {file.name}")
        run(packages.as_root(["tee", str(mark)]), "noting its version", input=version)


def ensure_tool(name):
    """Makes sure that `cargo NAME` works."""
    if shutil.which(name):
        return
    with step(f"building {name} {TOOLS[name]}, which takes minutes, once"):
        command = ["cargo", "install", "--locked", "--debug", "--version", TOOLS[name], *FEATURES.get(name, []), name]
        run(command, f"installing {name}", env=QUICK_BUILD, cwd="/")
    if not shutil.which(name):
        raise Failure(f"{name} was installed, yet is not on PATH")


def nightly():
    """How to run a cargo that accepts unstable options: the words before `fuzz`, and the environment."""
    if shutil.which("rustup"):
        toolchains = subprocess.run(["rustup", "toolchain", "list"], capture_output=True, text=True, check=False).stdout
        if re.search(r"^nightly", toolchains, re.MULTILINE):
            return ["cargo", "+nightly"], {}
    return ["cargo"], {"RUSTC_BOOTSTRAP": "1"}


def _extend_path():
    home = os.environ.get("CARGO_HOME") or str(Path.home() / ".cargo")
    folder = f"{home}/bin"
    if folder not in os.environ["PATH"].split(":"):
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


@cache
def _wanted():
    with open(PROJECT / "Cargo.toml", "rb") as file:
        return tomllib.load(file)["workspace"]["package"]["rust-version"]


def _version():
    if not shutil.which("rustc") or not shutil.which("cargo"):
        return None
    result = subprocess.run(["rustc", "--version"], cwd=PROJECT, capture_output=True, text=True, check=False)
    match = re.match(r"rustc (\d+\.\d+)", result.stdout)
    return match[1] if match else None


def _new_enough():
    version = _version()
    return bool(version) and _numbers(version) >= _numbers(_wanted())


def _numbers(version):
    return [int(word) for word in version.split(".")[:2]]


def _install():
    offered = DISTRIBUTION_RUST.get(packages.codename())
    if offered:
        packages.ensure(offered)
        if not _new_enough():
            # Lists of before the security update that has it.
            packages.renew(offered)
        return
    # Debian 13, Ubuntu 24.04: the distribution packages rustup itself.
    packages.ensure(["rustup"])
    with step(f"installing Rust {TOOLCHAIN} for this user"):
        # Ubuntu's rustup cannot update itself, and would fail after all else is done.
        run(["rustup", "toolchain", "install", TOOLCHAIN, "--profile", "default", "--no-self-update"], "installing the toolchain")
    # Whoever has chosen another one keeps it.
    os.environ["RUSTUP_TOOLCHAIN"] = TOOLCHAIN
    if subprocess.run(["rustup", "default"], capture_output=True, check=False, env=_without_choice()).returncode != 0:
        run(["rustup", "default", TOOLCHAIN], "choosing the toolchain")


def _without_choice():
    return {name: value for name, value in os.environ.items() if name != "RUSTUP_TOOLCHAIN"}
