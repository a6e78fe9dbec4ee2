//! Where the guest's kernel keeps the note by which debuggers find their way in its memory (VMCOREINFO). It tells by writing
//! the file `etc/vmcoreinfo` (QEMU, `docs/specs/vmcoreinfo.rst`); Linux does when its driver of the device is loaded.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 2 | the host's format, which the host presents: 1, an ELF note |
//! | 2 | 2 | the guest's format: 0, none yet; 1, an ELF note |
//! | 4 | 4 | bytes of the guest's note, with room to spare |
//! | 8 | 8 | its guest-physical address |
//!
//! All are little-endian.

use super::items::{GuestFile, ItemError, Items};
use machine::bus::Range;
use machine::memory::{Bytes, GuestAddress, Memory};

/// The file's name.
pub const NAME: &str = "etc/vmcoreinfo";
const SIZE: usize = 16;
const FORMAT_ELF: u16 = 1;
/// Bytes of an ELF note before its name: the sizes of name and content, and the type.
const NOTE_HEADER: usize = 12;
/// The note's name, with the zero at its end and what fills its last word.
const NOTE_NAME: &[u8; 12] = b"VMCOREINFO\0\0";
/// The longest note that is read, in bytes. Linux has 4096.
const LONGEST_NOTE: u64 = 64 << 10;

/// What the guest has told. Clones are of the same guest.
#[derive(Clone, Debug)]
pub struct VmcoreInfo(GuestFile);

impl VmcoreInfo {
    /// Adds the file to `items`.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn add(items: &mut Items) -> Result<Self, ItemError> {
        let mut content = vec![0; SIZE];
        content.iter_mut().zip(FORMAT_ELF.to_le_bytes()).for_each(|(to, from)| *to = from);
        items.add_writable(NAME, content).map(Self)
    }

    /// Where the note is; `None` if the guest has not told.
    pub fn place(&self) -> Option<Range> {
        let content: [u8; SIZE] = self.0.content().try_into().ok()?;
        let [_, _, f0, f1, s0, s1, s2, s3, address @ ..] = content;
        let told =
            Range { start: u64::from_le_bytes(address), size: u32::from_le_bytes([s0, s1, s2, s3]).into() };
        (u16::from_le_bytes([f0, f1]) == FORMAT_ELF && told.size > 0).then_some(told)
    }

    /// The content of the guest's note, which is text. `None`: the guest has not told, or there is no such note where it says.
    pub fn read(&self, memory: &Memory) -> Option<Vec<u8>> {
        let Range { start, size } = self.place()?;
        let mut note = vec![0; usize::try_from(size.min(LONGEST_NOTE)).ok()?];
        memory.read_slice(&mut note, GuestAddress(start)).ok()?;
        let (header, rest) = note.split_first_chunk::<NOTE_HEADER>()?;
        let [n0, n1, n2, n3, c0, c1, c2, c3, ..] = *header;
        let (name, content) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes([c0, c1, c2, c3])).ok()?;
        // The name's size is without what fills its last word.
        let named = u32::from_le_bytes([n0, n1, n2, n3]) == 11 && name == NOTE_NAME;
        content.get(..length).filter(|content| named && !content.is_empty()).map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::memory::GuestRam;
    use std::sync::Arc;

    const PLACE: u64 = 0x2000;

    fn memory() -> Memory {
        Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap())
    }

    fn told(format: u16, size: u32, address: u64) -> VmcoreInfo {
        let info = VmcoreInfo::add(&mut Items::default()).unwrap();
        let content =
            [&[1, 0][..], &format.to_le_bytes(), &size.to_le_bytes(), &address.to_le_bytes()].concat();
        assert!(info.0.write(0, &content));
        info
    }

    fn put(memory: &Memory, name: &[u8; 12], length: u32, content: &[u8]) {
        let note = [&11_u32.to_le_bytes()[..], &length.to_le_bytes(), &[0; 4], &name[..], content].concat();
        memory.write_slice(&note, GuestAddress(PLACE)).unwrap();
    }

    #[test]
    fn a_note_is_found_where_the_guest_says() {
        let memory = memory();
        put(&memory, NOTE_NAME, 12, b"OSRELEASE=1\nand more");
        assert_eq!(told(1, 4096, PLACE).read(&memory).unwrap(), b"OSRELEASE=1\n");
        assert_eq!(told(1, 36, PLACE).read(&memory).unwrap(), b"OSRELEASE=1\n", "all that is needed");
    }

    #[test]
    fn nothing_is_read_before_the_guest_has_told_or_where_it_lies() {
        let memory = memory();
        put(&memory, NOTE_NAME, 12, b"OSRELEASE=1\n");
        let untold = VmcoreInfo::add(&mut Items::default()).unwrap();
        assert_eq!((untold.place(), untold.read(&memory)), (None, None));
        for (format, size, address) in [
            (0, 4096, PLACE),
            (2, 4096, PLACE),
            (1, 0, PLACE),
            (1, 35, PLACE),
            (1, 4096, PLACE + 4),
            (1, 4096, 0xf001),
            (1, u32::MAX, u64::MAX - 8),
        ] {
            assert_eq!(told(format, size, address).read(&memory), None, "{format} {size} {address:#x}");
        }
        for (name, length) in [(b"VMCOREINFX\0\0", 12), (NOTE_NAME, u32::MAX), (NOTE_NAME, 0)] {
            put(&memory, name, length, b"OSRELEASE=1\n");
            assert_eq!(told(1, 4096, PLACE).read(&memory), None, "{name:?} {length}");
        }
    }
}
