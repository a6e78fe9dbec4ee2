"""The part of scripts/test for Arm machines, on a machine of another processor."""

import arm_hosts
import guests
import monitor
import nested_host
import nested_kinds
import processors
import quickstart_check
import rust
from places import PROJECT, TARGET
from suite_run import NESTED, binaries, captured, say

# A test that takes more seconds is named in the report: it is emulated.
SLOW = 20

# Of the tests with the bare-metal guest, those that are about machines; the others are about the program that runs them.
BARE_ON_ARM = ("native_boot", "native_devices", "native_gic", "native_hostile")

# Crates whose unit tests are run, most of them in user-mode emulation. What that lacks, the nested Arm host has: io_uring and taps,
# and word of which pages are there.
TESTED = ["machine", "pci", "virtio", "hypervisor", "arch", "vmm", "block", "net"]
NESTED_CRATES = "block net"
TESTS_OF_PAGES = ("vmm", ["populated_pages_are_there_with_what_they_held", "prefaulted_memory_is_resident"])
NOT_RUN = {
    "devices but those of Arm": "they take long, and what they test is the same on each architecture",
    "fuzz targets but those about the architecture": "the other corpora are replayed on x86_64",
}
# Devices that only such a machine has.
ARM_DEVICES = ["pflash", "primecell"]
# Fuzz targets of what is not the same on each architecture.
ARM_CORPORA = ["api", "gdb", "kernel_loader", "options"]


def part(run):
    """Everything for Arm, on a machine of another processor. On an Arm machine the other parts do it."""
    processor = processors.AARCH64
    why = "the other parts test it here" if processor.native else processors.available(processor)
    if why:
        run.skip("aarch64", why)
        return
    if not run.set_up("aarch64", rust.ensure_cross, processor):
        return
    environment = rust.ensure_cross(processor)
    cargo = rust.cargo(environment)
    _, version, _ = captured([environment.get("RUSTC", "rustc"), "--version"])
    say(f"                  aarch64: {version.strip()}")
    target = ["--target", processor.target]
    # The same packages for all tests, so that each is built once.
    tested = [*target, *(word for name in (*TESTED, "vivarium-tests", "fuzz-targets") for word in ("--package", name))]
    if not run.set_up("nested Arm host", nested_host.snapshot, nested_kinds.ARM):
        return
    if not run.filter:
        lints = [cargo, "clippy", *target, "--workspace", "--all-targets", "--", "-D", "warnings"]
        run.command("aarch64 lints", lints, environment)
        units(run, cargo, environment | runner(processor), tested)
    command, environment, binary = monitor.build(processor)
    if not run.command("aarch64 release build", command, environment, count=False):
        return
    if not run.set_up("aarch64 nested tests", guests.ensure, True, processor):
        return
    guest = TARGET / "guest" / f"guest-{processor.name}"
    builder = [PROJECT / "tests" / "guest" / "build", guest, processor.name]
    if not run.command("aarch64 bare-metal guest", builder, environment, count=False):
        return
    environment |= runner(processor) | {
        "VIVARIUM_BIN": str(binary),
        "VIVARIUM_GUESTS": str(guests.folder(processor)),
        "VIVARIUM_BARE_GUEST": str(guest),
    }
    chosen = " | ".join(binaries(prefix, run.filter) for prefix in (NESTED, *BARE_ON_ARM))
    name = "whole machines, in the nested Arm host"
    run.nextest(name, chosen, environment, retries=1, cargo=cargo, options=tested, limit=SLOW)
    for word, (name, command) in arm_hosts.STEPS.items():
        if not run.filter or run.filter in word:
            run.command(name, command(binary, processor))
    if not run.filter or run.filter in quickstart_check.NAME:
        name = f"{quickstart_check.NAME} --arch {processor.name}"
        run.call(name, quickstart_check.run_for, processor, retries=quickstart_check.RETRIES)


def runner(processor):
    """Has cargo run tests where they can work."""
    variable = f"CARGO_TARGET_{processor.target.upper().replace('-', '_')}_RUNNER"
    return {variable: str(PROJECT / "scripts" / "nested-runner")}


def units(run, cargo, environment, tested):
    """Unit tests. Cargo's own runner starts a program once for all its tests: in emulation that is most of what a short one takes."""
    crate, names = TESTS_OF_PAGES
    others = [word for name in names for word in ("--skip", name)]
    unit = ["test", *tested, "--lib", "--test", "sim*", "--test", "native_tap", "--", "--show-output", *others]
    run.libtest("aarch64 unit tests", unit, environment | {"VIVARIUM_NESTED_CRATES": NESTED_CRATES}, cargo)
    pages = ["test", *tested, "--lib", "--", *names]
    nested = environment | {"VIVARIUM_NESTED_CRATES": crate}
    run.libtest("aarch64 unit tests of pages", pages, nested, cargo, expected=len(names))
    devices = ["test", *tested, "--package", "devices", "--lib", "--", *ARM_DEVICES]
    run.libtest("aarch64 devices' unit tests", devices, environment, cargo)
    corpora = ["test", *tested, "--test", "corpus", "--", *ARM_CORPORA]
    run.libtest("aarch64 fuzz corpora", corpora, environment, cargo)
    for name, reason in NOT_RUN.items():
        run.skip(f"aarch64 unit tests of {name}", reason)
