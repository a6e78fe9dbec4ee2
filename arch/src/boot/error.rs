//! Why a kernel could not be loaded.
//!
//! The messages are made to follow the name of the option and the file: `--kernel /boot/k: is empty`.

use machine::memory::GuestAddress;
use std::borrow::Cow;
use std::io;
use thiserror::Error;

/// Why a machine could not be made ready to boot. Which of the user's inputs is at fault is in the variant.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel.
    #[error("kernel: {0}")]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error("initramfs: {0}")]
    Initramfs(#[from] InitramfsError),
    /// The command line.
    #[error("kernel command line: {0}")]
    CommandLine(#[from] CommandLineError),
    /// Guest memory does not have what the layout says.
    #[error("cannot write boot data at guest address {address:#x}: there is no memory", address = address.0)]
    Memory {
        /// Where.
        address: GuestAddress,
    },
}

/// What is wrong with a kernel.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The file has no content.
    #[error("is empty: copy the kernel again, or give another one")]
    Empty,
    /// The file ends too early.
    #[error("is truncated: {what} needs {needs} bytes of the file, which has {has}: copy it again")]
    Truncated {
        /// What is not all there.
        what: &'static str,
        /// How long the file has to be, in bytes.
        needs: u64,
        /// How long it is.
        has: u64,
    },
    /// The file is something else.
    #[error("is not a kernel this machine can boot (it looks like {looks_like}): give it {wanted}")]
    NotAKernel {
        /// What it looks like.
        looks_like: Cow<'static, str>,
        /// What it should be.
        wanted: &'static str,
    },
    /// What is compressed in the file cannot be had.
    #[error("is damaged: what is compressed in it by {method} cannot be decompressed: {reason}")]
    Compressed {
        /// The method's name.
        method: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// The file contradicts itself.
    #[error("is damaged: {0}")]
    Malformed(&'static str),
    /// The kernel wants to be where boot data and firmware are.
    #[error("is to be loaded at {start:#x}, and a kernel cannot be below 1 MiB")]
    TooLow {
        /// Guest-physical address.
        start: u64,
    },
    /// The kernel and what it needs to start do not fit.
    #[error(
        "needs memory from {} MiB up to {} MiB, and the machine's ends at {} MiB: give it more", 
        start >> 20, end.div_ceil(1 << 20), ram_end >> 20
    )]
    NeedsMoreMemory {
        /// First address it needs.
        start: u64,
        /// The end of what it needs.
        end: u64,
        /// The end of the RAM that a kernel can be in.
        ram_end: u64,
    },
}

/// What is wrong with an initramfs.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The file has no content.
    #[error("is empty: make it again, or leave the option out")]
    Empty,
    /// There is no room.
    #[error(
        "has {size} bytes, and beside the kernel the machine has room for {available}: give it more memory"
    )]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// Bytes free for it.
        available: u64,
    },
}

/// What is wrong with a command line.
#[derive(Debug, Error)]
pub enum CommandLineError {
    /// Longer than the kernel takes.
    #[error("has {length} bytes, and this kernel takes {limit}: shorten it")]
    TooLong {
        /// Its length in bytes.
        length: u64,
        /// The kernel's limit.
        limit: u64,
    },
    /// A NUL would end it.
    #[error("has a NUL at byte {position}, which would end it: take it out")]
    Nul {
        /// Offset in bytes.
        position: usize,
    },
}
