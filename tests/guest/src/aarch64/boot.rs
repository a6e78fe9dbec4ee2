//! What the monitor tells a guest at its start: a flattened device tree (Devicetree Specification 0.4, chapter 5).

use crate::boot_info::BootInfo;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// The protocol by which the guest was entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// That of a Linux kernel.
    Linux,
}

impl Entry {
    /// By the number that `boot.s` gives it.
    pub fn of(_number: u32) -> Self {
        Entry::Linux
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        "linux"
    }
}

/// The parts of the tree that are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Chosen,
    Memory,
    Pci,
    Other,
}

impl BootInfo {
    /// Reads the tree at `address`.
    ///
    /// # Safety
    /// There is a device tree in mapped memory.
    pub unsafe fn read(address: u64, entry: Entry) -> BootInfo {
        let mut information = BootInfo::new(entry);
        // SAFETY: the caller's promise.
        unsafe {
            if cell(address) == MAGIC {
                information
                    .walk(address + u64::from(cell(address + 8)), address + u64::from(cell(address + 12)));
            }
        }
        information
    }

    unsafe fn walk(&mut self, structure: u64, strings: u64) {
        let (mut at, mut depth, mut node) = (structure, 0, Node::Other);
        // SAFETY: the caller's promise covers the whole tree, and the monitor made it well.
        unsafe {
            loop {
                let token = cell(at);
                at += 4;
                match token {
                    BEGIN_NODE => {
                        depth += 1;
                        if depth == 2 {
                            node = Node::named(at);
                        }
                        at = (at + length(at) + 1).next_multiple_of(4);
                    }
                    END_NODE => depth -= 1,
                    PROPERTY => {
                        let (size, name) = (u64::from(cell(at)), strings + u64::from(cell(at + 4)));
                        if depth == 2 {
                            self.keep(node, name, at + 8, size);
                        }
                        at = (at + 8 + size).next_multiple_of(4);
                    }
                    NOP => {}
                    _ => return,
                }
            }
        }
    }

    unsafe fn keep(&mut self, node: Node, name: u64, value: u64, size: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            let is = |wanted: &[u8]| starts_with(name, wanted);
            match node {
                Node::Chosen if is(b"bootargs\0") => self.keep_line(value, size as usize),
                Node::Memory if is(b"reg\0") => {
                    for range in 0..size / 16 {
                        self.keep_region(cells(value + 16 * range), cells(value + 16 * range + 8));
                    }
                }
                Node::Pci if is(b"reg\0") && self.ecam.is_none() => self.ecam = Some(cells(value)),
                _ => {}
            }
        }
    }
}

impl Node {
    unsafe fn named(name: u64) -> Self {
        let kinds: [(&[u8], Self); 4] = [
            (b"chosen\0", Node::Chosen),
            (b"memory", Node::Memory),
            (b"pcie@", Node::Pci),
            (b"pci@", Node::Pci),
        ];
        // SAFETY: the caller's promise.
        let found = kinds.into_iter().find(|(start, _)| unsafe { starts_with(name, start) });
        found.map_or(Node::Other, |(_, kind)| kind)
    }
}

unsafe fn starts_with(text: u64, start: &[u8]) -> bool {
    // SAFETY: the caller's promise: no byte behind the first that differs is read.
    start.iter().enumerate().all(|(at, &byte)| unsafe { (text as *const u8).add(at).read_volatile() } == byte)
}

/// Bytes of a text up to its zero.
unsafe fn length(text: u64) -> u64 {
    let mut length = 0;
    // SAFETY: the caller's promise.
    while unsafe { ((text + length) as *const u8).read_volatile() } != 0 {
        length += 1;
    }
    length
}

unsafe fn cell(address: u64) -> u32 {
    // SAFETY: the caller's promise.
    u32::from_be(unsafe { (address as *const u32).read_volatile() })
}

unsafe fn cells(address: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { u64::from(cell(address)) << 32 | u64::from(cell(address + 4)) }
}
