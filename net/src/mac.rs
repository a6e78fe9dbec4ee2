//! MAC addresses.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// An Ethernet address of one station, such as `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Why a text is not the MAC address of a station.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MacError {
    /// It has not the form of one.
    #[error("{0:?} is not a MAC address: give six bytes in hexadecimal, such as 52:54:00:12:34:56")]
    Form(String),
    /// It is a group's.
    #[error("{0} is a multicast address: a device's first byte is even, such as in 52:54:00:12:34:56")]
    Multicast(String),
    /// It is all zeroes.
    #[error("00:00:00:00:00:00 is no device's address: give another, such as 52:54:00:12:34:56")]
    Zero,
}

impl MacAddress {
    /// The address of these bytes.
    ///
    /// # Errors
    /// When it is all zeroes or a group's.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let [first, ..] = bytes;
        if bytes == [0; 6] {
            Err(MacError::Zero)
        } else if first & 1 != 0 {
            Err(MacError::Multicast(Self(bytes).to_string()))
        } else {
            Ok(Self(bytes))
        }
    }

    /// A locally administered address made of random bits.
    pub fn from_random(random: [u8; 6]) -> Self {
        let [first, rest @ ..] = random;
        let [b, c, d, e, f] = rest;
        Self([first & !1 | 2, b, c, d, e, f])
    }

    /// What these bytes look like as an address, also if they are none.
    pub(crate) fn text(bytes: [u8; 6]) -> String {
        Self(bytes).to_string()
    }

    /// The bytes, in the order they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(form)?;
            if !matches!(part.len(), 1 | 2) || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        Self::new(bytes)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        let mac: MacAddress = "52:54:00:aB:cd:0f".parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"52:54:00:ab:cd:0f\"");
        assert_eq!(serde_json::from_str::<MacAddress>("\"52:54:0:ab:cd:f\"").unwrap(), mac);
    }

    #[test]
    fn what_is_no_stations_address_is_refused_with_a_hint() {
        for text in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:0f:1",
            "52:54:00:ab:cd:+1",
            "52-54-00-ab-cd-0f",
            "52:54:00:ab:cd:100",
        ] {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert_eq!(error, MacError::Form(text.into()));
            assert!(error.to_string().contains("such as 52:54:00:12:34:56"));
        }
        assert!(matches!("01:00:5e:00:00:01".parse::<MacAddress>(), Err(MacError::Multicast(_))));
        assert_eq!("0:0:0:0:0:0".parse::<MacAddress>(), Err(MacError::Zero));
        assert!(MacAddress::new(MacAddress::from_random([0xff; 6]).bytes()).is_ok());
    }
}
