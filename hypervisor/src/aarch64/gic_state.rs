//! The saved state of the interrupt controller (GIC architecture version 3). Fields are named after registers.
//!
//! What is in guest memory is not in it: which messages are which interrupts and whether those are pending (tables of the
//! translation services, and of the redistributors), which saving writes there. Nor is which devices hold a pin active.

use super::FIRST_SPI;
use machine::state::{SavedFields, StateError};
use serde::{Deserialize, Serialize};

/// The interrupt controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GicState {
    /// GICD_IIDR, whose revision tells how the distributor behaves. 0: as the host's does.
    pub gicd_iidr: u32,
    /// GICD_CTLR.
    pub gicd_ctlr: u32,
    /// Shared interrupts.
    pub shared: InterruptsState,
    /// GICD_IROUTER of each shared interrupt: the CPU it goes to. Empty: as after power-on.
    pub gicd_irouter: Vec<u64>,
    /// What each CPU has of its own, by number.
    pub cpus: Vec<GicCpuState>,
    /// The translation services, in the order of their addresses.
    pub its: Vec<ItsState>,
}

impl SavedFields for GicState {
    const KIND: &'static str = "gic-v3";
    const VERSION: u32 = 1;
}

/// A run of interrupts. Each register has some bits for each, those of the first interrupt lowest. An empty one is as after
/// power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterruptsState {
    /// Group 1. One bit.
    pub igroupr: Vec<u32>,
    /// Enabled. One bit.
    pub isenabler: Vec<u32>,
    /// Pending by an edge or a write, not by the level of its pin. One bit.
    pub ispendr: Vec<u32>,
    /// Active: acknowledged, and not yet deactivated. One bit.
    pub isactiver: Vec<u32>,
    /// Priority, 0 the highest. Eight bits.
    pub ipriorityr: Vec<u32>,
    /// Edge-triggered. The upper of two bits.
    pub icfgr: Vec<u32>,
    /// The pin is active. One bit. Not a register.
    pub line_level: Vec<u32>,
}

/// What the interrupt controller has for one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GicCpuState {
    /// GICR_CTLR.
    pub gicr_ctlr: u32,
    /// GICR_PROPBASER: where the priorities of message-signalled interrupts are in memory.
    pub gicr_propbaser: u64,
    /// GICR_PENDBASER: where it is in memory which of them are pending.
    pub gicr_pendbaser: u64,
    /// Private interrupts.
    pub private: InterruptsState,
    /// The registers by which the CPU takes interrupts.
    pub interface: CpuInterfaceState,
}

/// The registers by which a CPU takes interrupts: ICC_*_EL1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuInterfaceState {
    /// ICC_CTLR_EL1. It also tells how many bits priorities have. 0: as after power-on.
    pub ctlr: u64,
    /// ICC_SRE_EL1.
    pub sre: u64,
    /// ICC_PMR_EL1: less urgent interrupts wait.
    pub pmr: u64,
    /// ICC_BPR0_EL1.
    pub bpr0: u64,
    /// ICC_BPR1_EL1.
    pub bpr1: u64,
    /// `ICC_AP0R<n>_EL1`: which priorities are active. How many there are depends on the bits of priorities.
    pub ap0r: Vec<u64>,
    /// `ICC_AP1R<n>_EL1`.
    pub ap1r: Vec<u64>,
    /// ICC_IGRPEN0_EL1.
    pub igrpen0: u64,
    /// ICC_IGRPEN1_EL1.
    pub igrpen1: u64,
}

impl Default for CpuInterfaceState {
    fn default() -> Self {
        /// Used by registers, and neither interrupt bypasses it: the only value there is.
        const SYSTEM_REGISTERS: u64 = 7;
        let (ap0r, ap1r) = (Vec::new(), Vec::new());
        Self { ctlr: 0, sre: SYSTEM_REGISTERS, pmr: 0, bpr0: 0, bpr1: 0, ap0r, ap1r, igrpen0: 0, igrpen1: 0 }
    }
}

/// A translation service for message-signalled interrupts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ItsState {
    /// GITS_IIDR, whose revision tells the form of the tables. 0: as the host's are.
    pub iidr: u32,
    /// GITS_CTLR.
    pub ctlr: u32,
    /// GITS_CBASER: where its commands are.
    pub cbaser: u64,
    /// GITS_CWRITER.
    pub cwriter: u64,
    /// GITS_CREADR.
    pub creadr: u64,
    /// `GITS_BASER<n>`: where its tables are. Empty: as after power-on.
    pub baser: Vec<u64>,
}

impl GicState {
    /// Checks that this is the state of a controller with so many shared interrupts, CPUs and translation services.
    ///
    /// # Errors
    /// When it is of another, or some registers are of so many interrupts and others not.
    pub fn check(&self, shared: u32, cpus: u32, its: u32) -> Result<(), StateError> {
        let refuse = |reason| Err(StateError::Value { kind: Self::KIND, reason });
        for (what, found, here) in
            [("CPUs", self.cpus.len(), cpus), ("translation services", self.its.len(), its)]
        {
            if found != here as usize {
                return refuse(format!("it has {found} {what}, and this machine has {here}"));
            }
        }
        let routers = self.gicd_irouter.len();
        if routers != 0 && routers != shared as usize {
            return refuse(format!(
                "gicd_irouter is of {routers} interrupts, and this machine has {shared} shared ones"
            ));
        }
        let private = self.cpus.iter().map(|cpu| (&cpu.private, FIRST_SPI));
        for (interrupts, count) in private.chain([(&self.shared, shared)]) {
            if let Some(name) = interrupts.not_of(count) {
                return refuse(format!("{name} is not of {count} interrupts, as this machine has them"));
            }
        }
        Ok(())
    }
}

impl InterruptsState {
    /// The first field that has something of another number of interrupts.
    fn not_of(&self, count: u32) -> Option<&'static str> {
        let fields = [
            ("igroupr", &self.igroupr, 32),
            ("isenabler", &self.isenabler, 32),
            ("ispendr", &self.ispendr, 32),
            ("isactiver", &self.isactiver, 32),
            ("ipriorityr", &self.ipriorityr, 4),
            ("icfgr", &self.icfgr, 16),
            ("line_level", &self.line_level, 32),
        ];
        let wrong = fields.into_iter().find(|(_, words, in_a_word)| {
            !words.is_empty() && words.len() as u64 != u64::from(count.div_ceil(*in_a_word))
        });
        wrong.map(|(name, ..)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::state::SavedState;
    use serde_json::json;

    /// A state in which every field says something, of 32 shared interrupts.
    fn example() -> GicState {
        let interrupts = |first: u32| InterruptsState {
            igroupr: vec![u32::MAX],
            isenabler: vec![first | 1],
            ispendr: vec![first | 2],
            isactiver: vec![first | 4],
            ipriorityr: (0..8).map(|n| 0xa0a0_a000 | n).collect(),
            icfgr: vec![0xaaaa_aaaa, 0x8],
            line_level: vec![first | 8],
        };
        let interface = CpuInterfaceState {
            ctlr: 0x400,
            sre: 7,
            pmr: 0xf0,
            bpr0: 2,
            bpr1: 3,
            ap0r: vec![0],
            ap1r: vec![0x10],
            igrpen0: 0,
            igrpen1: 1,
        };
        GicState {
            gicd_iidr: 0x4b00_243b,
            gicd_ctlr: 0x52,
            shared: interrupts(0x100),
            gicd_irouter: (0..32).collect(),
            cpus: vec![GicCpuState {
                gicr_ctlr: 1,
                gicr_propbaser: 0x4002_078f,
                gicr_pendbaser: 0x4003_0780,
                private: interrupts(0x1_0000),
                interface,
            }],
            its: vec![ItsState {
                iidr: 0x0043_043b,
                ctlr: 0x8000_0001,
                cbaser: 0xb800_0000_4020_0000,
                cwriter: 0x80,
                creadr: 0x60,
                baser: vec![0x8107_0000_4010_0200, 0x8407_0000_4011_0200, 0, 0, 0, 0, 0, 0],
            }],
        }
    }

    /// What a release has written must be read by all later ones: this file never changes.
    const VERSION_1: &str = include_str!("gic-v3.1.json");

    #[test]
    fn the_published_format_is_read_and_written() {
        let golden: SavedState = serde_json::from_str(VERSION_1).unwrap();
        assert_eq!(golden.read::<GicState>().unwrap(), example());
        assert_eq!(SavedState::of(&example()).unwrap(), golden);
        example().check(32, 1, 1).unwrap();
    }

    #[test]
    fn unknown_fields_are_skipped_and_missing_ones_are_as_after_power_on() {
        let fields = json!({
            "gicd_ctlr": 0x50,
            "colour": "red",
            "cpus": [{ "gicr_ctlr": 1, "interface": { "pmr": 0xf0, "smell": 1 } }],
            "its": [{}],
        });
        let saved = SavedState { kind: GicState::KIND.into(), version: 1, fields };
        let state: GicState = saved.read().unwrap();
        let interface = CpuInterfaceState { pmr: 0xf0, ..CpuInterfaceState::default() };
        assert_eq!(interface.sre, 7);
        let cpu = GicCpuState { gicr_ctlr: 1, interface, ..GicCpuState::default() };
        let its = vec![ItsState::default()];
        assert_eq!(state, GicState { gicd_ctlr: 0x50, cpus: vec![cpu], its, ..GicState::default() });
        state.check(64, 1, 1).unwrap();
    }

    #[test]
    fn a_state_of_another_machine_is_refused() {
        let refusal = |change: fn(&mut GicState)| {
            let mut state = example();
            change(&mut state);
            state.check(32, 1, 1).unwrap_err().to_string()
        };
        assert!(refusal(|state| state.cpus.clear()).contains("0 CPUs, and this machine has 1"));
        let two = refusal(|state| state.its.push(ItsState::default()));
        assert!(two.contains("2 translation services"), "{two}");
        assert!(refusal(|state| state.gicd_irouter.truncate(31)).contains("gicd_irouter is of 31"));
        assert!(refusal(|state| state.shared.ispendr.push(0)).contains("ispendr is not of 32"));
        assert!(
            refusal(|state| state.cpus[0].private.ipriorityr.truncate(7)).contains("ipriorityr is not of 32")
        );
        let newer = SavedState { version: 2, ..SavedState::of(&example()).unwrap() };
        assert!(matches!(newer.read::<GicState>(), Err(StateError::Version { .. })));
    }
}
