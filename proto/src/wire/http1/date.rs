//! The Date field (RFC 9110, section 5.6.7).

/// A moment as `Sun, 06 Nov 1994 08:49:37 GMT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpDate([u8; 29]);

impl HttpDate {
    /// The moment so many seconds after 1970-01-01T00:00:00Z. Years after 9999 are written as 9999.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        // 1970-01-01 was a Thursday.
        let weekday = triple(b"ThuFriSatSunMonTueWed", days % 7);
        let month = triple(b"JanFebMarAprMayJunJulAugSepOctNovDec", month - 1);
        let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
        let year = year.min(9999);
        let parts: [(usize, [u8; 3]); 2] = [(0, weekday), (8, month)];
        for (at, name) in parts {
            put(&mut text, at, &name);
        }
        let numbers = [
            (5, day),
            (12, year / 100),
            (14, year % 100),
            (17, of_day / 3_600),
            (20, of_day / 60 % 60),
            (23, of_day % 60),
        ];
        for (at, number) in numbers {
            let digit = |value: u64| u8::try_from(value % 10).unwrap_or_default() + b'0';
            put(&mut text, at, &[digit(number / 10), digit(number)]);
        }
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

fn put(text: &mut [u8; 29], at: usize, part: &[u8]) {
    for (slot, byte) in text.iter_mut().skip(at).zip(part) {
        *slot = *byte;
    }
}

fn triple(names: &[u8], index: u64) -> [u8; 3] {
    let at = usize::try_from(index).unwrap_or_default() * 3;
    names.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

/// Year, month (1 to 12) and day of the Gregorian calendar, from the days since 1970-01-01.
///
/// The year is taken to begin in March, so that the leap day is its last.
const fn civil(days: u64) -> (u64, u64, u64) {
    // 0000-03-01 lies 719,468 days before; an era is 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = 400 * era + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}
