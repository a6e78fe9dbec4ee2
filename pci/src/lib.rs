//! PCI Express as the guest sees it (PCIe 6.0): configuration space, BARs, capabilities, MSI and MSI-X, the
//! root complex, and the planning of where BARs go.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod bar;
pub mod bar_window;
pub mod bridge;
pub mod capability;
pub mod config;
pub mod express;
pub mod function;
pub mod intx;
pub mod msi;
pub mod msix;
pub mod placement;
pub mod plan;
pub mod port;
pub mod root;
pub mod segment;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vectors;

pub use bar_window::BarWindow;
pub use vectors::VectorHandle;
