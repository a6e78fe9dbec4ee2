//! How CPUs are grouped: threads in cores, cores in dies, dies in packages.
//!
//! An APIC id has a bit field for each level, just wide enough for the level's count (Intel SDM 3, 10.9.1).
//! With counts that are no powers of two, the ids have gaps.

use thiserror::Error;

/// How many of each level there are in the level above, and packages in the machine. All are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    threads: u32,
    cores: u32,
    dies: u32,
    packages: u32,
}

/// Where a CPU is: its number within each level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Thread in its core.
    pub thread: u32,
    /// Core in its die.
    pub core: u32,
    /// Die in its package.
    pub die: u32,
    /// Package in the machine.
    pub package: u32,
}

/// Why a topology cannot be.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TopologyError {
    /// A level has nothing in it.
    #[error("topology {threads}:{cores}:{dies}:{packages}: each number must be at least 1")]
    Zero {
        /// Threads per core.
        threads: u32,
        /// Cores per die.
        cores: u32,
        /// Dies per package.
        dies: u32,
        /// Packages.
        packages: u32,
    },
    /// It is not the topology of that many CPUs.
    #[error(
        "topology {threads}:{cores}:{dies}:{packages} is one of {product} CPUs, and the machine has at most {cpus}: make the \
         numbers multiply to {cpus}"
    )]
    Count {
        /// Threads per core.
        threads: u32,
        /// Cores per die.
        cores: u32,
        /// Dies per package.
        dies: u32,
        /// Packages.
        packages: u32,
        /// What these multiply to.
        product: u64,
        /// How many CPUs there are to be.
        cpus: u32,
    },
}

impl Topology {
    /// A topology of `cpus` CPUs, counting those that may be added while the machine runs.
    ///
    /// # Errors
    /// When a number is zero or they do not multiply to `cpus`.
    pub fn new(threads: u32, cores: u32, dies: u32, packages: u32, cpus: u32) -> Result<Self, TopologyError> {
        let levels = [threads, cores, dies, packages];
        if levels.contains(&0) {
            return Err(TopologyError::Zero { threads, cores, dies, packages });
        }
        let product = levels.into_iter().map(u64::from).fold(1, u64::saturating_mul);
        if product != u64::from(cpus) {
            return Err(TopologyError::Count { threads, cores, dies, packages, product, cpus });
        }
        Ok(Self { threads, cores, dies, packages })
    }

    /// One package of `cpus` single-threaded cores; at least one.
    pub fn flat(cpus: u32) -> Self {
        Self { threads: 1, cores: cpus.max(1), dies: 1, packages: 1 }
    }

    /// Threads per core.
    pub fn threads(self) -> u32 {
        self.threads
    }

    /// Cores per die.
    pub fn cores(self) -> u32 {
        self.cores
    }

    /// Dies per package.
    pub fn dies(self) -> u32 {
        self.dies
    }

    /// Packages.
    pub fn packages(self) -> u32 {
        self.packages
    }

    /// CPUs in all.
    pub fn cpus(self) -> u32 {
        self.cpus_per_package() * self.packages
    }

    /// CPUs in a package.
    pub fn cpus_per_package(self) -> u32 {
        self.threads * self.cores * self.dies
    }

    /// Where CPU number `index` is: neighbours share as much as they can.
    pub fn place(self, index: u32) -> Place {
        Place {
            thread: index % self.threads,
            core: index / self.threads % self.cores,
            die: index / (self.threads * self.cores) % self.dies,
            package: index / self.cpus_per_package(),
        }
    }

    /// The local APIC's id of CPU number `index`, which is also the id the hypervisor makes the CPU with.
    pub fn apic_id(self, index: u32) -> u32 {
        let Place { thread, core, die, package } = self.place(index);
        package << self.package_shift() | die << self.die_shift() | core << self.core_shift() | thread
    }

    /// Bits of an APIC id below the core's number.
    pub fn core_shift(self) -> u32 {
        width(self.threads)
    }

    /// Bits of an APIC id below the die's number.
    pub fn die_shift(self) -> u32 {
        self.core_shift() + width(self.cores)
    }

    /// Bits of an APIC id below the package's number.
    pub fn package_shift(self) -> u32 {
        self.die_shift() + width(self.dies)
    }
}

/// Bits that `count` numbers from 0 need.
fn width(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_a_field_for_each_level() {
        let topology = Topology::new(2, 3, 2, 2, 24).unwrap();
        let ids: Vec<_> = (0..24).map(|index| topology.apic_id(index)).collect();
        assert_eq!(ids[..8], [0, 1, 2, 3, 4, 5, 8, 9], "three cores take the room of four");
        assert_eq!((ids[12], ids[23]), (16, 16 + 13));
        assert_eq!(topology.place(23), Place { thread: 1, core: 2, die: 1, package: 1 });
        let flat = Topology::flat(254);
        assert!((0..254).all(|index| flat.apic_id(index) == index));
    }

    #[test]
    fn numbers_must_multiply_out() {
        assert_eq!(Topology::new(1, 2, 1, 1, 2).unwrap(), Topology::flat(2));
        let error = Topology::new(2, 4, 1, 1, 6).unwrap_err().to_string();
        assert!(error.contains("2:4:1:1") && error.contains("8 CPUs") && error.contains("to 6"), "{error}");
        assert!(matches!(Topology::new(0, 4, 1, 1, 4), Err(TopologyError::Zero { .. })));
        let most = u32::MAX;
        assert!(matches!(Topology::new(most, most, most, most, 1), Err(TopologyError::Count { .. })));
    }
}
