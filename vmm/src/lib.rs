//! The control plane: configuration, the machine thread, lifecycle.

pub mod cli;
pub mod config;
pub mod config_help;
pub mod memory;
