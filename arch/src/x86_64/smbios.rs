//! SMBIOS tables (SMBIOS 3.3): what the machine is called, its serial number and UUID, its processors and memory.
//!
//! Linux finds the entry point by searching the BIOS area below 1 MiB; it also takes the BIOS date from here, and
//! uses an ECAM above 4 GiB only from firmware dated 2010 or later.

use machine::bus::Range;
use machine::memory::{Bytes, GuestAddress, Memory};
use std::str::FromStr;
use thiserror::Error;

/// What the tables say.
#[derive(Clone, Debug, Default)]
pub struct SmbiosConfig {
    /// The machine's names.
    pub system: SystemStrings,
    /// The machine's UUID; without one, it is "not present".
    pub uuid: Option<Uuid>,
    /// Free text, such as what tools inside the guest are to be told (type 11).
    pub oem_strings: Vec<String>,
    /// The processors.
    pub processors: Processors,
    /// Where RAM is.
    pub ram: Vec<Range>,
}

/// The system's names (type 1). Empty ones are "not specified".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemStrings {
    /// Manufacturer.
    pub manufacturer: String,
    /// Product name.
    pub product: String,
    /// Version.
    pub version: String,
    /// Serial number.
    pub serial: String,
    /// Stock-keeping unit.
    pub sku: String,
    /// Family.
    pub family: String,
}

impl Default for SystemStrings {
    fn default() -> Self {
        Self {
            manufacturer: "Vivarium".into(),
            product: "Vivarium virtual machine".into(),
            version: String::new(),
            serial: String::new(),
            sku: String::new(),
            family: String::new(),
        }
    }
}

/// The processors (type 4), all alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processors {
    /// How many packages there are.
    pub packages: u16,
    /// Cores of each.
    pub cores: u16,
    /// Threads of each, in all.
    pub threads: u16,
    /// CPUID leaf 1: EAX in the low half, EDX in the high one.
    pub signature: u64,
    /// Who makes them, such as `"GenuineIntel"`.
    pub manufacturer: String,
    /// What they are called.
    pub brand: String,
}

/// A universally unique identifier, in the order it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl FromStr for Uuid {
    type Err = SmbiosError;

    fn from_str(text: &str) -> Result<Self, SmbiosError> {
        let refuse = || SmbiosError::Uuid(text.to_owned());
        let places = text.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        });
        if text.len() != 36 || !places {
            return Err(refuse());
        }
        let digits = text.replace('-', "");
        let number = u128::from_str_radix(&digits, 16).map_err(|_| refuse())?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl Uuid {
    /// As SMBIOS stores it: the first three fields little-endian (SMBIOS 3.3, 7.2.1).
    fn stored(self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes[..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }
}

/// Why there are no tables.
#[derive(Debug, Error)]
pub enum SmbiosError {
    /// A text has a NUL in it, which ends a string.
    #[error("the SMBIOS string {0:?} has a NUL character in it: leave it out")]
    Text(String),
    /// Not a UUID.
    #[error("{0:?} is not a UUID: write it as 8-4-4-4-12 hexadecimal digits")]
    Uuid(String),
    /// There are too many strings of one kind.
    #[error("{0} OEM strings are more than the 255 that SMBIOS can number")]
    TooMany(usize),
    /// They are larger than the space kept for them.
    #[error("the SMBIOS tables take {needed} bytes, and {available} are kept for them: use shorter strings")]
    TooLarge {
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// The place is not RAM.
    #[error("writing SMBIOS tables to guest memory at {address:#x}: {source}")]
    Memory {
        /// Where they were to go.
        address: u64,
        /// What guest memory answered.
        source: vm_memory::GuestMemoryError,
    },
}

/// Where the structures begin after the entry point.
const STRUCTURES: usize = 32;

/// Makes the tables for `place`, which begins at a multiple of 16.
///
/// # Errors
/// When a string cannot be represented or they do not fit.
pub fn build(config: &SmbiosConfig, place: Range) -> Result<Vec<u8>, SmbiosError> {
    let mut structures = Structures(Vec::with_capacity(1024));
    bios(&mut structures)?;
    system(config, &mut structures)?;
    chassis(config, &mut structures)?;
    for number in 0..config.processors.packages {
        processor(&config.processors, number, &mut structures)?;
    }
    if !config.oem_strings.is_empty() {
        oem_strings(&config.oem_strings, &mut structures)?;
    }
    memory(&config.ram, &mut structures)?;
    boot(&mut structures)?;
    Structure::new(127, 0).end(&[], &mut structures)?;

    let mut bytes = entry_point(place.start + STRUCTURES as u64, structures.0.len() as u32);
    bytes.resize(STRUCTURES, 0);
    bytes.extend(structures.0);
    let needed = bytes.len() as u64;
    if needed > place.size {
        return Err(SmbiosError::TooLarge { needed, available: place.size });
    }
    Ok(bytes)
}

/// Makes the tables and puts them into guest memory.
///
/// # Errors
/// As [`build`], and when the place is not RAM.
pub fn write(config: &SmbiosConfig, place: Range, memory: &Memory) -> Result<(), SmbiosError> {
    let bytes = build(config, place)?;
    memory
        .write_slice(&bytes, GuestAddress(place.start))
        .map_err(|source| SmbiosError::Memory { address: place.start, source })
}

/// The 64-bit entry point (SMBIOS 3.3, 5.2.2).
fn entry_point(structures: u64, size: u32) -> Vec<u8> {
    let mut bytes = b"_SM3_".to_vec();
    // Checksum, length, version 3.3.0, entry point revision 1, reserved.
    bytes.extend([0, 24, 3, 3, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend(structures.to_le_bytes());
    bytes[5] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    bytes
}

/// All structures made so far.
struct Structures(Vec<u8>);

/// One structure's formatted area, and the strings it names.
struct Structure {
    fields: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    /// The header; the handle is made of type and number.
    fn new(kind: u8, number: u16) -> Self {
        let mut structure = Self { fields: vec![kind, 0], strings: Vec::new() };
        structure.u16(handle(kind, number));
        structure
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.fields.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A string's number, or 0 for an empty one.
    fn text(&mut self, text: &str) -> &mut Self {
        let number = if text.is_empty() {
            0
        } else {
            self.strings.push(text.to_owned());
            self.strings.len() as u8
        };
        self.u8(number)
    }

    /// Puts the structure behind the others, followed by its strings and `more` that no field names.
    fn end(&mut self, more: &[String], out: &mut Structures) -> Result<(), SmbiosError> {
        self.fields[1] = self.fields.len() as u8;
        out.0.extend_from_slice(&self.fields);
        let start = out.0.len();
        for text in self.strings.iter().chain(more) {
            if text.contains('\0') {
                return Err(SmbiosError::Text(text.clone()));
            }
            out.0.extend_from_slice(text.as_bytes());
            out.0.push(0);
        }
        if out.0.len() == start {
            out.0.push(0);
        }
        out.0.push(0);
        Ok(())
    }
}

fn handle(kind: u8, number: u16) -> u16 {
    (u16::from(kind) << 8).wrapping_add(number)
}

/// Type 0 (7.1). Characteristics: PCI is supported; ACPI is supported; a virtual machine.
fn bios(out: &mut Structures) -> Result<(), SmbiosError> {
    let mut structure = Structure::new(0, 0);
    structure.text("Vivarium").text(env!("CARGO_PKG_VERSION")).u16(0xe800).text("01/01/2026");
    structure.u8(0).u64(1 << 7).u8(1).u8(1 << 4);
    // No BIOS nor embedded controller release.
    structure.bytes(&[0, 0, 0xff, 0xff]).u16(0);
    structure.end(&[], out)
}

/// Type 1 (7.2).
fn system(config: &SmbiosConfig, out: &mut Structures) -> Result<(), SmbiosError> {
    let system = &config.system;
    let mut structure = Structure::new(1, 0);
    structure.text(&system.manufacturer).text(&system.product).text(&system.version).text(&system.serial);
    structure.bytes(&config.uuid.map_or([0; 16], Uuid::stored));
    // Woken up by the power switch.
    structure.u8(6).text(&system.sku).text(&system.family);
    structure.end(&[], out)
}

/// Type 3 (7.4).
fn chassis(config: &SmbiosConfig, out: &mut Structures) -> Result<(), SmbiosError> {
    let mut structure = Structure::new(3, 0);
    // Kind of chassis: other. Its states: safe, safe, safe; security: none.
    structure.text(&config.system.manufacturer).u8(1).text("").text("").text("");
    structure.bytes(&[3, 3, 3, 3]).u32(0);
    // Height, power cords, contained elements, their size, SKU.
    structure.bytes(&[0, 0, 0, 0]).text("");
    structure.end(&[], out)
}

/// Type 4 (7.5).
fn processor(processors: &Processors, number: u16, out: &mut Structures) -> Result<(), SmbiosError> {
    let mut structure = Structure::new(4, number);
    // A central processor, of another family than those listed.
    structure.text(&format!("CPU {number}")).u8(3).u8(1).text(&processors.manufacturer);
    structure.u64(processors.signature).text(&processors.brand);
    // Voltage and speeds are unknown. Populated and enabled; in another kind of socket; no caches described.
    structure.u8(0).u16(0).u16(0).u16(0).u8(0x41).u8(1).u16(0xffff).u16(0xffff).u16(0xffff);
    structure.text("").text("").text("");
    let byte = |count: u16| u8::try_from(count).unwrap_or(0xff);
    structure.bytes(&[byte(processors.cores), byte(processors.cores), byte(processors.threads)]);
    // 64-bit capable, and several cores or threads where there are.
    let several =
        u16::from(processors.cores > 1) << 3 | u16::from(processors.threads > processors.cores) << 4;
    structure.u16(1 << 2 | several).u16(1);
    structure.u16(processors.cores).u16(processors.cores).u16(processors.threads);
    structure.end(&[], out)
}

/// Type 11 (7.12).
fn oem_strings(strings: &[String], out: &mut Structures) -> Result<(), SmbiosError> {
    let count = u8::try_from(strings.len()).map_err(|_| SmbiosError::TooMany(strings.len()))?;
    // An empty string would end the set.
    let strings: Vec<_> =
        strings.iter().map(|text| if text.is_empty() { " ".to_owned() } else { text.clone() }).collect();
    Structure::new(11, 0).u8(count).end(&strings, out)
}

/// Types 16, 17 and 19 (7.17, 7.18, 7.20): one array of one module, and where it is mapped.
fn memory(ram: &[Range], out: &mut Structures) -> Result<(), SmbiosError> {
    let size = ram.iter().fold(0u64, |sum, range| sum.saturating_add(range.size));
    let mut array = Structure::new(16, 0);
    // On the system board, as system memory, multi-bit error correction; capacity in the extended field; no error
    // information; one module.
    array.bytes(&[3, 3, 6]).u32(0x8000_0000).u16(0xfffe).u16(1).u64(size);
    array.end(&[], out)?;

    let mut module = Structure::new(17, 0);
    let mebibytes = u32::try_from(size >> 20).unwrap_or(u32::MAX) & 0x7fff_ffff;
    let short = u16::try_from(mebibytes).ok().filter(|size| *size < 0x7fff).unwrap_or(0x7fff);
    let extended = if short == 0x7fff { mebibytes } else { 0 };
    // Widths unknown. A DIMM in no set; RAM of another kind; speeds unknown.
    module.u16(handle(16, 0)).u16(0xfffe).u16(0xffff).u16(0xffff).u16(short).bytes(&[9, 0]);
    module.text("DIMM 0").text("").u8(7).u16(1 << 1).u16(0);
    module.text("Vivarium").text("").text("").text("").u8(0).u32(extended);
    module.u16(0).u16(0).u16(0).u16(0);
    module.end(&[], out)?;

    for (range, number) in ram.iter().zip(0u16..) {
        let mut mapped = Structure::new(19, number);
        mapped.u32(u32::MAX).u32(u32::MAX).u16(handle(16, 0)).u8(1).u64(range.start).u64(range.last());
        mapped.end(&[], out)?;
    }
    Ok(())
}

/// Type 32 (7.33): no errors at boot.
fn boot(out: &mut Structures) -> Result<(), SmbiosError> {
    Structure::new(32, 0).bytes(&[0; 6]).u8(0).end(&[], out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn config() -> SmbiosConfig {
        SmbiosConfig {
            system: SystemStrings {
                manufacturer: "Acme".into(),
                product: "Anvil".into(),
                version: "v7".into(),
                serial: "S-123".into(),
                sku: "sku-9".into(),
                family: "Heavy".into(),
            },
            uuid: Some("00112233-4455-6677-8899-aabbccddeeff".parse().unwrap()),
            oem_strings: vec!["ds=nocloud".into(), String::new(), "two words".into()],
            processors: Processors {
                packages: 2,
                cores: 300,
                threads: 600,
                signature: 0x0fab_fbff_0080_0f12,
                manufacturer: "AuthenticAMD".into(),
                brand: "Some Processor".into(),
            },
            ram: vec![
                Range { start: 0, size: 3 << 30 },
                Range { start: 1 << 32, size: (64 << 30) - (3 << 30) },
            ],
        }
    }

    const PLACE: Range = Range { start: 0xf_0000, size: 0x1_0000 };

    /// Walks the structures as the specification says: type, number of strings.
    fn walk(bytes: &[u8]) -> Vec<(u8, Vec<String>)> {
        let mut at = STRUCTURES;
        let mut found = Vec::new();
        while at < bytes.len() {
            let kind = bytes[at];
            at += usize::from(bytes[at + 1]);
            let mut strings = Vec::new();
            while bytes[at] != 0 {
                let end = at + bytes[at..].iter().position(|byte| *byte == 0).unwrap();
                strings.push(String::from_utf8(bytes[at..end].to_vec()).unwrap());
                at = end + 1;
            }
            at += if strings.is_empty() { 2 } else { 1 };
            found.push((kind, strings));
        }
        assert_eq!(at, bytes.len());
        found
    }

    #[test]
    fn a_walker_reaches_the_end_structure() {
        let bytes = build(&config(), PLACE).unwrap();
        assert_eq!(bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(bytes[16..24], (PLACE.start + 32).to_le_bytes());
        assert_eq!(bytes[12..16], (bytes.len() as u32 - 32).to_le_bytes());
        let kinds: Vec<u8> = walk(&bytes).iter().map(|structure| structure.0).collect();
        assert_eq!(kinds, [0, 1, 3, 4, 4, 11, 16, 17, 19, 19, 32, 127]);
        assert_eq!(walk(&bytes)[1].1, ["Acme", "Anvil", "v7", "S-123", "sku-9", "Heavy"]);
        assert!(walk(&build(&SmbiosConfig::default(), PLACE).unwrap()).len() >= 6);
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let mut bad = config();
        bad.system.serial = "a\0b".into();
        assert!(matches!(build(&bad, PLACE), Err(SmbiosError::Text(text)) if text == "a\0b"));
        let many = SmbiosConfig { oem_strings: vec!["x".into(); 256], ..config() };
        assert!(matches!(build(&many, PLACE), Err(SmbiosError::TooMany(256))));
        let long = SmbiosConfig { oem_strings: vec!["x".repeat(70_000)], ..config() };
        assert!(matches!(build(&long, PLACE), Err(SmbiosError::TooLarge { available: 0x1_0000, .. })));
        for text in [
            "",
            "00112233-4455-6677-8899-aabbccddeef",
            "00112233-4455-6677-8899-aabbccddeefg",
            "0011223344556677-8899-aabb-ccddeeff0",
            "+0112233-4455-6677-8899-aabbccddeeff",
        ] {
            assert!(text.parse::<Uuid>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn dmidecode_reads_what_was_meant() {
        // A dump has the entry point at its start and the structures 32 bytes on, as if loaded at address 0.
        let bytes = build(&config(), Range { start: 0, size: 0x1_0000 }).unwrap();
        let path = std::env::temp_dir().join(format!("vivarium-smbios-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let output = Command::new("dmidecode").arg("--from-dump").arg(&path).output();
        std::fs::remove_file(&path).unwrap();
        let Ok(output) = output else {
            crate::testing::skip_without("dmidecode");
            return;
        };
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{text}");
        for bad in ["BAD INDEX", "OUT OF SPEC", "truncated", "Wrong", "Invalid", "broken"] {
            assert!(!text.contains(bad), "{bad}: {text}");
        }
        for expected in [
            "SMBIOS 3.3.0 present",
            "System is a virtual machine",
            "Manufacturer: Acme",
            "Serial Number: S-123",
            "UUID: 00112233-4455-6677-8899-aabbccddeeff",
            "SKU Number: sku-9",
            "Family: Heavy",
            "String 1: ds=nocloud",
            "String 3: two words",
            "Core Count: 300",
            "Thread Count: 600",
            "Maximum Capacity: 64 GB",
            "Size: 64 GB",
            "Starting Address: 0x0000000100000000",
            "Range Size: 61 GB",
            "Status: No errors detected",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }
}
