//! What is in flash.
//!
//! Firmware is read into memory when the machine is made. Variables are a file that is mapped: what the guest programs or erases is in
//! it at once, whatever becomes of this process, and a thread has the host make it stable, which takes as long as the disk takes. What the
//! guest has changed since that was last done, a power loss of the host may take away, page by page.

use crate::file_lock::Locked;
use crate::file_space;
use crate::seccomp::{self, ThreadKind};
use anyhow::{Context, Result, bail, ensure};
use devices::pflash::BLOCK_SIZE;
use machine::memory::{MappedRegion, VolatileMemory};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegionBuilder;

/// Bytes of a file by which it is told what it is.
const HEAD_SIZE: usize = 64 << 10;
/// Bytes for variables that live as long as the machine: firmware's stores have less.
const VOLATILE_SIZE: u64 = 4 << 20;
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// What a bank has, and who hears of its changes.
pub struct Content {
    pub memory: Arc<MappedRegion>,
    pub read_only: bool,
    pub changed: Option<Box<dyn Fn() + Send>>,
    /// Keeps others from the file.
    pub lock: Option<Locked>,
}

/// The beginning of a file.
///
/// # Errors
/// When it cannot be read, or is empty.
pub fn head(file: &File) -> Result<Vec<u8>> {
    let mut head = vec![0; HEAD_SIZE];
    let size = read_at_most(file, &mut head, 0)?;
    ensure!(size > 0, "is empty: copy the firmware again, or give another one");
    head.truncate(size);
    Ok(head)
}

impl Content {
    /// Firmware. What of the last block is not in the file is erased.
    ///
    /// # Errors
    /// When it cannot be read, or has more than `room` bytes.
    pub fn code(file: &File, room: u64) -> Result<Self> {
        let size = file.metadata()?.len();
        ensure!(size <= room, "has {size} bytes, and firmware can have at most {room}: give another one");
        let memory = anonymous(size.next_multiple_of(BLOCK_SIZE))?;
        let (mut piece, zeroes) = (vec![0; PIECE], vec![0; PIECE]);
        for at in (0..usize::try_from(size)?).step_by(PIECE) {
            piece.fill(0xff);
            ensure!(read_at_most(file, &mut piece, at as u64)? > 0, "the file changed while it was read");
            // Firmware files have many zeroes, and memory that was not touched costs nothing.
            if piece != zeroes {
                memory.get_slice(at, PIECE)?.copy_from(&piece);
            }
        }
        // Pieces that begin after the end of the file.
        erase(&memory, usize::try_from(size)?.next_multiple_of(PIECE))?;
        Ok(Self { memory: Arc::new(memory), read_only: true, changed: None, lock: None })
    }

    /// Variables that live as long as the machine: erased.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn volatile() -> Result<Self> {
        let memory = anonymous(VOLATILE_SIZE)?;
        erase(&memory, 0)?;
        Ok(Self { memory: Arc::new(memory), read_only: false, changed: None, lock: None })
    }

    /// Variables in a file, which nobody else may have.
    ///
    /// # Errors
    /// When it cannot be had, or is no store for variables of at most `room` bytes.
    pub fn variables(path: &Path, room: u64) -> Result<Self> {
        const REMEDY: &str = "copy the firmware's template, such as AAVMF_VARS.fd";
        let open = File::options().read(true).write(true).open(path);
        let file = open.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!("there is no such file; {REMEDY}"),
            io::ErrorKind::IsADirectory => anyhow::anyhow!("is a directory; give a file"),
            _ => anyhow::Error::new(error).context("opening it to read and write"),
        })?;
        let file = Arc::new(file);
        let Some(lock) = Locked::new(&file)? else {
            bail!("another machine or process has it; give each machine a copy of its own");
        };
        let size = file.metadata()?.len();
        ensure!(size > 0, "is empty; {REMEDY}");
        ensure!(
            size <= room && size.is_multiple_of(BLOCK_SIZE),
            "has {size} bytes, and variables have a multiple of {BLOCK_SIZE} and at most {room}; {REMEDY}"
        );
        file_space::keep(&file, size).context("keeping space on the disk for all of it; free some")?;
        let memory = MmapRegionBuilder::new(usize::try_from(size)?)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
            .build()
            .context("mapping it")?;
        let changes = keep(file)?;
        // When there is an order that was not taken yet, it is for this change too.
        let changed = Box::new(move || _ = changes.try_send(()));
        Ok(Self { memory: Arc::new(memory), read_only: false, changed: Some(changed), lock: Some(lock) })
    }
}

fn anonymous(size: u64) -> Result<MappedRegion> {
    MappedRegion::new(usize::try_from(size)?).context("taking memory of the host")
}

/// Sets all bits from `start` on.
fn erase(memory: &MappedRegion, start: usize) -> Result<()> {
    let ones = vec![0xff_u8; PIECE];
    for at in (start..memory.size()).step_by(PIECE) {
        memory.get_slice(at, PIECE.min(memory.size().saturating_sub(at)))?.copy_from(&ones);
    }
    Ok(())
}

/// Fills `buffer` from `offset` on, as far as the file goes, and says how far.
fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Starts the thread that makes changes stable. It ends when nobody is left to tell it of one.
fn keep(file: Arc<File>) -> Result<SyncSender<()>> {
    let (sender, changes): (_, Receiver<()>) = sync_channel(1);
    std::thread::Builder::new()
        .name("flash-keep".into())
        .stack_size(128 << 10)
        .spawn(move || {
            seccomp::confine(ThreadKind::Worker);
            while changes.recv().is_ok() {
                if let Err(error) = file.sync_data() {
                    tracing::error!("the firmware's variables could not be made stable: {error}");
                }
            }
        })
        .context("starting a thread that makes changes stable")?;
    Ok(sender)
}
