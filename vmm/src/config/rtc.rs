//! `--rtc`.

use super::device::device_options;

device_options! {
    /// A real-time clock (virtio-rtc; Linux 6.16 and later): the host's clocks, which the guest can follow closely, and alarms.
    pub struct RtcConfig is "rtc" told by id {
    }
}
