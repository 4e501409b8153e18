//! Time as an argument.

use core::ops::{Add, Sub};
pub use core::time::Duration;

/// A point on the driver's monotonic clock: microseconds since an origin that the driver chose.
///
/// There is no `now()`: the driver samples its clock once a turn and passes the value in, the simulator makes it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The origin itself.
    pub const ORIGIN: Self = Self(0);

    /// The instant `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this instant is; zero when it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        let micros = u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.since(rhs)
    }
}

/// Wall-clock time: microseconds since 1970-01-01T00:00:00Z, as the driver's system clock tells it.
///
/// Only for what people and other programs read (audit timestamps, the `Date` field); no decision hangs on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(u64);

impl Wall {
    /// The time `micros` microseconds after the epoch.
    pub const fn from_unix_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the epoch.
    pub const fn unix_micros(self) -> u64 {
        self.0
    }

    /// Appends RFC 3339 in UTC with microseconds: `2026-02-15T09:30:00.000001Z`.
    pub fn write_rfc3339(self, out: &mut Vec<u8>) {
        let (year, month, day) = self.civil();
        let [hour, minute, second] = self.clock();
        digits(out, year, 4);
        out.push(b'-');
        digits(out, month, 2);
        out.push(b'-');
        digits(out, day, 2);
        out.push(b'T');
        digits(out, hour, 2);
        out.push(b':');
        digits(out, minute, 2);
        out.push(b':');
        digits(out, second, 2);
        out.push(b'.');
        digits(out, self.0 % 1_000_000, 6);
        out.push(b'Z');
    }

    /// Appends an IMF-fixdate (RFC 9110 section 5.6.7): `Sun, 15 Feb 2026 09:30:00 GMT`.
    pub fn write_imf_fixdate(self, out: &mut Vec<u8>) {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let (year, month, day) = self.civil();
        let [hour, minute, second] = self.clock();
        let name = |table: &[&'static str], index: u64| {
            usize::try_from(index).ok().and_then(|i| table.get(i).copied()).unwrap_or("")
        };
        out.extend_from_slice(name(&DAYS, self.days() % 7).as_bytes());
        out.extend_from_slice(b", ");
        digits(out, day, 2);
        out.push(b' ');
        out.extend_from_slice(name(&MONTHS, month - 1).as_bytes());
        out.push(b' ');
        digits(out, year, 4);
        out.push(b' ');
        digits(out, hour, 2);
        out.push(b':');
        digits(out, minute, 2);
        out.push(b':');
        digits(out, second, 2);
        out.extend_from_slice(b" GMT");
    }

    const fn days(self) -> u64 {
        self.0 / 86_400_000_000
    }

    const fn clock(self) -> [u64; 3] {
        let second = self.0 / 1_000_000;
        [second / 3600 % 24, second / 60 % 60, second % 60]
    }

    /// Year, month and day in the proleptic Gregorian calendar: eras of 400 years that begin in March, so that the
    /// leap day is the last of its year.
    const fn civil(self) -> (u64, u64, u64) {
        let day = self.days() + 719_468;
        let era = day / 146_097;
        let day_of_era = day % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
        (year, month, day)
    }
}

/// Appends `value` in decimal, padded with zeros to `width`.
fn digits(out: &mut Vec<u8>, value: u64, width: u32) {
    for place in (0..width).rev() {
        let digit = value / 10u64.pow(place) % 10;
        out.push(b'0' + u8::try_from(digit).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_known_ones() {
        for (micros, rfc3339, imf) in [
            (0, "1970-01-01T00:00:00.000000Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z", "Tue, 29 Feb 2000 00:00:00 GMT"),
            (784_111_777_000_000, "1994-11-06T08:49:37.000000Z", "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_735_689_599_999_999, "2024-12-31T23:59:59.999999Z", "Tue, 31 Dec 2024 23:59:59 GMT"),
        ] {
            let wall = Wall::from_unix_micros(micros);
            let mut text = Vec::new();
            wall.write_rfc3339(&mut text);
            assert_eq!(String::from_utf8(text).unwrap(), rfc3339);
            let mut text = Vec::new();
            wall.write_imf_fixdate(&mut text);
            assert_eq!(String::from_utf8(text).unwrap(), imf);
        }
    }

    #[test]
    fn instants_saturate() {
        let early = Instant::from_micros(5);
        assert_eq!(early.since(early + Duration::from_secs(1)), Duration::ZERO);
        assert_eq!((early + Duration::MAX).as_micros(), u64::MAX);
    }
}
