//! What the ACPI tables (ACPI 6.5) of all architectures have in common.

pub mod events;
pub(crate) mod hotplug;
pub mod loader;
pub(crate) mod numa;
pub(crate) mod pci;
pub(crate) mod pptt;
pub(crate) mod table;
#[cfg(test)]
pub(crate) mod testing;

use machine::bus::Range;
use machine::memory::{Bytes, GuestAddress, Memory};
use table::{HEADER_SIZE, TableWriter, aligned};
use thiserror::Error;

pub use numa::NodeMemory;

/// Why tables could not be put into memory.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// They are larger than the space kept for them.
    #[error(
        "the ACPI tables take {needed} bytes, and {available} are kept for them: use fewer CPUs or PCI segments"
    )]
    TooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// The place is not RAM.
    #[error("writing ACPI tables to guest memory at {address:#x}: {source}")]
    Memory {
        /// Where they were to go.
        address: u64,
        /// What guest memory answered.
        source: vm_memory::GuestMemoryError,
    },
}

/// The size of a root table that lists one table.
const ROOT_SIZE: usize = HEADER_SIZE + 8;

/// The tables, made for certain addresses.
#[derive(Clone, Debug)]
pub struct Tables {
    place: Range,
    bytes: Vec<u8>,
    rsdp_address: GuestAddress,
    rsdp: Vec<u8>,
    index: Vec<([u8; 4], std::ops::Range<usize>)>,
    /// Addresses of those that the root table lists.
    listed: Vec<u64>,
}

impl Tables {
    /// None yet. All but the RSDP lie in `place`, which begins at a multiple of 16.
    pub(crate) fn new(place: Range, rsdp: GuestAddress) -> Self {
        Self {
            place,
            bytes: Vec::new(),
            rsdp_address: rsdp,
            rsdp: Vec::new(),
            index: Vec::new(),
            listed: Vec::new(),
        }
    }

    /// Adds a table that the root table lists.
    pub(crate) fn list(&mut self, table: Vec<u8>) {
        let address = self.add(table);
        self.listed.push(address);
    }

    /// Adds a table that the root table lists, unless it would take the room that is left.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for tables that say what is known otherwise")
    )]
    pub(crate) fn list_if_it_fits(&mut self, table: Vec<u8>) {
        let root = ROOT_SIZE + 8 * self.listed.len();
        let needed = aligned(aligned(self.bytes.len()) + table.len()) + root;
        if needed as u64 <= self.place.size {
            self.list(table);
        }
    }

    /// Adds the root table and what points to it.
    pub(crate) fn finish(mut self) -> Result<Self, AcpiError> {
        let mut xsdt = TableWriter::new(*b"XSDT", 1);
        for entry in &self.listed {
            xsdt.u64(*entry);
        }
        let xsdt = self.add(xsdt.finish());
        self.rsdp = table::rsdp(xsdt);
        let (needed, available) = (self.bytes.len() as u64, self.place.size);
        if needed > available { Err(AcpiError::TooLarge { needed, available }) } else { Ok(self) }
    }

    /// Puts them where they were made for.
    ///
    /// # Errors
    /// When that is not RAM.
    pub fn write(&self, memory: &Memory) -> Result<(), AcpiError> {
        let pieces = [(GuestAddress(self.place.start), &self.bytes), (self.rsdp_address, &self.rsdp)];
        for (address, bytes) in pieces {
            memory
                .write_slice(bytes, address)
                .map_err(|source| AcpiError::Memory { address: address.0, source })?;
        }
        Ok(())
    }

    /// The tables but the RSDP, by signature.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
        self.index.iter().map(|(signature, range)| (signature, &self.bytes[range.clone()]))
    }

    /// Adds a table and returns the address it will have.
    pub(crate) fn add(&mut self, table: Vec<u8>) -> u64 {
        self.bytes.resize(aligned(self.bytes.len()), 0);
        let start = self.bytes.len();
        let mut signature = [0; 4];
        signature.copy_from_slice(&table[..4]);
        self.bytes.extend(table);
        self.index.push((signature, start..self.bytes.len()));
        self.place.start + start as u64
    }
}
