//! Dates of the Gregorian calendar, as far as a clock with a century register shows them.

use serde::{Deserialize, Serialize};

/// A second in UTC. Fields may hold what a guest wrote, also a 31st of February;
/// [`DateTime::to_unix`] carries what is too much over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct DateTime {
    pub(super) year: u16,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;
const DAYS_PER_400_YEARS: i64 = 146_097;

// The arithmetic below is on values bounded by the clamp in `from_unix` and by the fields' types.
#[allow(clippy::arithmetic_side_effects)]
impl DateTime {
    /// The date and time `seconds` after 1970-01-01T00:00:00Z; outside of the years 0 to 9999 the nearest one.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799);
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        // Counted in years from March on, so that the leap day is the last of the year.
        let days = seconds.div_euclid(SECONDS_PER_DAY) + EPOCH_DAYS;
        let era = days.div_euclid(DAYS_PER_400_YEARS);
        let of_era = days.rem_euclid(DAYS_PER_400_YEARS);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year: year as u16,
            month: month as u8,
            day: day as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub(super) fn to_unix(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let month_from_march = (month + 9) % 12;
        let of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * DAYS_PER_400_YEARS + of_era - EPOCH_DAYS;
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * SECONDS_PER_DAY + of_day
    }

    /// 1 for Sunday to 7 for Saturday.
    pub(super) fn day_of_week(self) -> u8 {
        // 1970-01-01 was a Thursday.
        ((self.to_unix().div_euclid(SECONDS_PER_DAY) + 4).rem_euclid(7) + 1) as u8
    }

    pub(super) fn year_of_century(self) -> u8 {
        (self.year % 100) as u8
    }

    pub(super) fn century(self) -> u8 {
        (self.year / 100) as u8
    }

    pub(super) fn set_year_of_century(&mut self, year: u8) {
        self.year = self.year / 100 * 100 + u16::from(year % 100);
    }

    pub(super) fn set_century(&mut self, century: u8) {
        self.year = u16::from(century % 100) * 100 + self.year % 100;
    }
}

impl std::fmt::Display for DateTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The C library's calendar, as an independent oracle.
    fn libc_date(seconds: i64) -> (DateTime, u8) {
        // SAFETY: `tm` is plain data for which all zeroes is a value.
        let mut tm: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live objects of the right types.
        let result = unsafe { libc::gmtime_r(&seconds, &mut tm) };
        assert!(!result.is_null());
        let date = DateTime {
            year: (tm.tm_year + 1900) as u16,
            month: (tm.tm_mon + 1) as u8,
            day: tm.tm_mday as u8,
            hour: tm.tm_hour as u8,
            minute: tm.tm_min as u8,
            second: tm.tm_sec as u8,
        };
        (date, tm.tm_wday as u8 + 1)
    }

    proptest! {
        #[test]
        fn dates_are_the_c_librarys(seconds in -62_167_219_200_i64..=253_402_300_799) {
            let date = DateTime::from_unix(seconds);
            prop_assert_eq!((date, date.day_of_week()), libc_date(seconds));
            prop_assert_eq!(date.to_unix(), seconds);
        }

        #[test]
        fn any_fields_and_seconds_are_harmless(
            year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8, seconds: i64,
        ) {
            let date = DateTime { year, month, day, hour, minute, second };
            prop_assert!((1..=7).contains(&date.day_of_week()));
            prop_assert!(DateTime::from_unix(seconds).year <= 9999);
        }
    }
}
