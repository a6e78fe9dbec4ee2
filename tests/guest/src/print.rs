//! Report lines, written to the first serial port or, with `out=e9`, to the debug console.

use crate::cpu::print;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU16, Ordering};

static PORT: AtomicU16 = AtomicU16::new(0x3f8);

/// The port lines leave through. The line-status register is not asked: monitors take every byte at once, and each
/// question would cost as much as a byte.
struct Port(u16);

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            print(self.0, byte);
        }
        Ok(())
    }
}

/// Chooses the port: `serial` (default) or `e9`.
pub fn choose(name: Option<&str>) {
    if name == Some("e9") {
        PORT.store(0xe9, Ordering::Relaxed);
    }
}

/// Whether `port` is the one that lines leave through.
pub fn is_output(port: u16) -> bool {
    let own = PORT.load(Ordering::Relaxed);
    port == own || own == 0x3f8 && (0x3f8..0x400).contains(&port)
}

/// Writes a line after the marker `@@ `; `report!` is the way to call it.
pub fn line(arguments: fmt::Arguments) {
    let mut port = Port(PORT.load(Ordering::Relaxed));
    // A port takes everything: there is no error to see.
    let _ = port.write_str("@@ ");
    let _ = port.write_fmt(arguments);
    let _ = port.write_str("\r\n");
}

/// Writes one report line.
#[macro_export]
macro_rules! report {
    ($($argument:tt)*) => { $crate::print::line(format_args!($($argument)*)) };
}
