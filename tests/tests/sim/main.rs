//! The machine thread and whole machines on the simulated backend. They are one program: most of it is the monitor, which each
//! further one would hold once more. Tests that look at their whole process, its threads and descriptors, are beside it (`sim_*`).

#[path = "../control/mod.rs"]
mod control;

mod boot;
mod debug;
mod devices;
mod fw_cfg;
mod kinds;
mod machine;
mod memory;
mod observe;
mod ports;
mod states;
