//! What surrounds a file that is given as a kernel.

use crate::input::Input;
use machine::bus::Range;
use machine::memory::{GuestAddress, GuestRam, Memory};
use std::fmt::Display;
use std::io::Cursor;
use std::sync::Arc;

/// Memory of a machine, in these ranges.
pub(crate) fn memory(ram: &[Range]) -> Memory {
    let ranges: Vec<_> = ram.iter().map(|range| (GuestAddress(range.start), range.size as usize)).collect();
    Arc::new(GuestRam::from_ranges(&ranges).expect("the host has memory"))
}

/// An input: two bytes of choices, the initramfs's size and the command line's length, and the file.
pub(crate) struct Files<'a> {
    pub(crate) kernel: Cursor<&'a [u8]>,
    pub(crate) initramfs: Option<Cursor<Vec<u8>>>,
    pub(crate) command_line: String,
}

impl<'a> Files<'a> {
    pub(crate) fn of(data: &'a [u8]) -> Self {
        let mut input = Input::new(data);
        let initramfs = vec![0; usize::from(input.u8()) << 8];
        Self {
            initramfs: (!initramfs.is_empty()).then(|| Cursor::new(initramfs)),
            command_line: "c".repeat(usize::from(input.u8()) << 4),
            kernel: Cursor::new(input.rest()),
        }
    }
}

/// An error is one line, and says something.
pub(crate) fn check_error(error: &impl Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}
