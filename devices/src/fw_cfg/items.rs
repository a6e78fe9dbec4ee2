//! What a firmware configuration device holds: items by number, and files, which have a number and a name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// The longest name of a file in bytes, without the NUL after it.
pub const LONGEST_NAME: usize = 55;
/// The most files there can be.
pub const MOST_FILES: usize = 256;

/// Numbers of items with a meaning of their own.
pub mod number {
    /// Size of the kernel without its setup part, in bytes; this and the other sizes have 32 bits, little-endian.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Size of the initramfs.
    pub const INITRAMFS_SIZE: u16 = 0x0b;
    /// Whether firmware has a menu, which its user is let into: 16 bits, little-endian.
    pub const BOOT_MENU: u16 = 0x0e;
    /// The kernel without its setup part.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initramfs.
    pub const INITRAMFS_DATA: u16 = 0x12;
    /// Size of the command line with the NUL after it.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Size of the kernel's setup part: the real-mode code that a bzImage begins with.
    pub const SETUP_SIZE: u16 = 0x17;
    /// The kernel's setup part.
    pub const SETUP_DATA: u16 = 0x18;
    /// "QEMU".
    pub(super) const SIGNATURE: u16 = 0x00;
    /// What the device can do.
    pub(super) const FEATURES: u16 = 0x01;
    /// The list of the files.
    pub(super) const DIRECTORY: u16 = 0x19;
    /// The first file; the others follow.
    pub(super) const FIRST_FILE: u16 = 0x20;
}

/// The registers are there, and DMA is.
const FEATURE_BITS: u32 = 0b11;

/// Why something cannot be an item.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ItemError {
    /// The name cannot be told to the guest.
    #[error("a name has 1 to {LONGEST_NAME} bytes of printable ASCII without spaces")]
    Name,
    /// There is a file of that name.
    #[error("there is an item of that name already")]
    Twice,
    /// There are too many.
    #[error("there are {MOST_FILES} items already, the most there can be")]
    TooMany,
    /// Its size has more than 32 bits.
    #[error("its size {0} is 4 GiB or more")]
    TooLarge(u64),
}

/// What a file has in it.
#[derive(Clone, Debug)]
enum Content {
    Fixed(Vec<u8>),
    Guest(GuestFile),
}

/// A file: what a guest finds by name.
#[derive(Clone, Debug)]
struct File {
    name: String,
    content: Content,
}

/// A file that the guest writes; its length is fixed. Clones are the same file.
#[derive(Clone, Debug)]
pub struct GuestFile {
    /// What is in it before the guest writes.
    initial: Arc<[u8]>,
    content: Arc<Mutex<Vec<u8>>>,
}

impl GuestFile {
    fn new(initial: Vec<u8>) -> Self {
        Self { initial: initial.as_slice().into(), content: Arc::new(Mutex::new(initial)) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in it.
    pub fn content(&self) -> Vec<u8> {
        self.lock().clone()
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> usize {
        self.initial.len()
    }

    /// Writes a part. `false`: it would go beyond the end, and nothing is written.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let mut content = self.lock();
        let part = offset.checked_add(bytes.len()).and_then(|end| content.get_mut(offset..end));
        part.map(|part| part.copy_from_slice(bytes)).is_some()
    }

    /// Forgets what the guest wrote.
    fn reset(&self) {
        self.lock().copy_from_slice(&self.initial);
    }
}

impl Content {
    fn size(&self) -> usize {
        match self {
            Self::Fixed(data) => data.len(),
            Self::Guest(file) => file.size(),
        }
    }
}

/// All that a device holds. What is in it stays as it is once the device is made, but for the files that the guest writes.
#[derive(Clone, Debug, Default)]
pub struct Items {
    numbered: BTreeMap<u16, Vec<u8>>,
    /// Ordered by name.
    files: Vec<File>,
}

impl Items {
    /// Holds `data` as the item `data_number`, and its size as the item `size_number`.
    ///
    /// # Errors
    /// When it is too large.
    pub fn set(&mut self, size_number: u16, data_number: u16, data: Vec<u8>) -> Result<(), ItemError> {
        let size = size_of(&data)?;
        self.numbered.insert(size_number, size.to_le_bytes().to_vec());
        self.numbered.insert(data_number, data);
        Ok(())
    }

    /// Holds a small value as an item.
    pub fn set_value(&mut self, number: u16, value: u16) {
        self.numbered.insert(number, value.to_le_bytes().to_vec());
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When it cannot be one.
    pub fn add(&mut self, name: &str, data: Vec<u8>) -> Result<(), ItemError> {
        size_of(&data)?;
        self.insert(name, Content::Fixed(data))
    }

    /// Adds a file that the guest can write, with what is in it until then.
    ///
    /// # Errors
    /// When it cannot be one.
    pub fn add_writable(&mut self, name: &str, initial: Vec<u8>) -> Result<GuestFile, ItemError> {
        size_of(&initial)?;
        let file = GuestFile::new(initial);
        self.insert(name, Content::Guest(file.clone()))?;
        Ok(file)
    }

    fn insert(&mut self, name: &str, content: Content) -> Result<(), ItemError> {
        check_name(name)?;
        if self.files.len() >= MOST_FILES {
            return Err(ItemError::TooMany);
        }
        match self.files.binary_search_by(|file| file.name.as_str().cmp(name)) {
            Ok(_) => Err(ItemError::Twice),
            Err(place) => {
                self.files.insert(place, File { name: name.to_owned(), content });
                Ok(())
            }
        }
    }

    /// Takes what `other` holds: it has its numbered items and its files; of those that it has had, it keeps what `other` has no
    /// file of the name of, and what the guest writes. They have to be completed again.
    pub(super) fn replace(&mut self, other: Self) {
        self.numbered = other.numbered;
        for file in other.files {
            match self.files.binary_search_by(|known| known.name.cmp(&file.name)) {
                Ok(at) => {
                    if let Some(known) = self.files.get_mut(at).filter(|known| known.writable().is_none()) {
                        *known = file;
                    }
                }
                Err(at) => self.files.insert(at, file),
            }
        }
        self.files.truncate(MOST_FILES);
    }

    /// Each file's name and size in bytes.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, usize)> {
        self.files.iter().map(|file| (file.name.as_str(), file.content.size()))
    }

    /// Completes them with what the device tells of itself and of its files.
    pub(super) fn complete(&mut self) {
        self.numbered.insert(number::SIGNATURE, b"QEMU".to_vec());
        self.numbered.insert(number::FEATURES, FEATURE_BITS.to_le_bytes().to_vec());
        self.numbered.insert(number::DIRECTORY, self.directory());
    }

    fn file(&self, number: u16) -> Option<&File> {
        self.files.get(usize::from(number.checked_sub(number::FIRST_FILE)?))
    }

    /// The item of that number; empty if there is none.
    pub(super) fn get(&self, number: u16) -> Cow<'_, [u8]> {
        if let Some(data) = self.numbered.get(&number) {
            return Cow::Borrowed(data);
        }
        match self.file(number).map(|file| &file.content) {
            Some(Content::Fixed(data)) => Cow::Borrowed(data),
            Some(Content::Guest(file)) => Cow::Owned(file.content()),
            None => Cow::Borrowed(&[]),
        }
    }

    /// The file of that number, if the guest can write it.
    pub(super) fn writable(&self, number: u16) -> Option<&GuestFile> {
        self.file(number)?.writable()
    }

    /// What the guest wrote, by the file's name.
    pub(super) fn written(&self) -> BTreeMap<String, Vec<u8>> {
        let files =
            self.files.iter().filter_map(|file| Some((file.name.clone(), file.writable()?.content())));
        files.collect()
    }

    /// Takes what a guest wrote elsewhere. The name of a file that there is not, or is of another size, is given back.
    pub(super) fn restore(&self, written: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
        for (name, content) in written {
            let file = self.files.iter().find(|file| file.name == *name).and_then(File::writable);
            match file {
                Some(file) if file.size() == content.len() => file.write(0, content),
                _ => return Err(name.clone()),
            };
        }
        Ok(())
    }

    /// Forgets what the guest wrote.
    pub(super) fn reset(&self) {
        self.files.iter().filter_map(File::writable).for_each(GuestFile::reset);
    }

    fn directory(&self) -> Vec<u8> {
        let count = u32::try_from(self.files.len()).unwrap_or(0);
        let mut directory = count.to_be_bytes().to_vec();
        for (file, number) in self.files.iter().zip(number::FIRST_FILE..) {
            let mut name = file.name.as_bytes().to_vec();
            name.resize(LONGEST_NAME.saturating_add(1), 0);
            // Their sizes were checked when they were added.
            let size = u32::try_from(file.content.size()).unwrap_or(0);
            directory.extend(size.to_be_bytes());
            directory.extend(number.to_be_bytes());
            directory.extend([0, 0]);
            directory.extend(name);
        }
        directory
    }
}

impl File {
    fn writable(&self) -> Option<&GuestFile> {
        match &self.content {
            Content::Fixed(_) => None,
            Content::Guest(file) => Some(file),
        }
    }
}

fn size_of(data: &[u8]) -> Result<u32, ItemError> {
    u32::try_from(data.len()).map_err(|_| ItemError::TooLarge(data.len() as u64))
}

/// Whether a file can have that name.
///
/// # Errors
/// When it cannot.
pub fn check_name(name: &str) -> Result<(), ItemError> {
    let fits = (1..=LONGEST_NAME).contains(&name.len());
    if fits && name.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err(ItemError::Name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_an_item_is_refused() {
        let mut items = Items::default();
        for name in ["", "with space", "umlaut-\u{e4}", "nul\0", &"x".repeat(56)] {
            assert_eq!(items.add(name, vec![]), Err(ItemError::Name), "{name:?}");
        }
        items.add(&"x".repeat(55), vec![1]).unwrap();
        assert_eq!(items.add(&"x".repeat(55), vec![2]), Err(ItemError::Twice));
        for index in 1..MOST_FILES {
            items.add(&format!("file{index}"), vec![]).unwrap();
        }
        assert_eq!(items.add("one-more", vec![]), Err(ItemError::TooMany));
    }

    #[test]
    fn files_are_numbered_by_name_and_listed() {
        let mut items = Items::default();
        items.add("opt/b", b"second".to_vec()).unwrap();
        items.add("opt/a", vec![7; 5000]).unwrap();
        items.set(number::KERNEL_SIZE, number::KERNEL_DATA, vec![1, 2, 3]).unwrap();
        items.complete();
        let listed = items.get(number::DIRECTORY);
        assert_eq!(listed.len(), 4 + 2 * 64);
        assert_eq!(listed[..4], [0, 0, 0, 2]);
        assert_eq!(listed[4..12], [0, 0, 0x13, 0x88, 0, 0x20, 0, 0]);
        assert_eq!(&listed[12..18], b"opt/a\0");
        assert_eq!(listed[68..74], [0, 0, 0, 6, 0, 0x21]);
        assert_eq!(*items.get(0x21), *b"second");
        assert_eq!(*items.get(number::KERNEL_SIZE), [3, 0, 0, 0]);
        assert_eq!(*items.get(number::KERNEL_DATA), [1, 2, 3]);
        assert!(items.get(0x22).is_empty() && items.get(u16::MAX).is_empty() && items.get(2).is_empty());
    }
}
