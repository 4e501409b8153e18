//! The tokens of JSON: how long the one is that begins here.

/// The longest number, in bytes. One that did not arrive whole is read from its beginning again.
const NUMBER_BYTES_MAX: usize = 1024;

/// Why there is no such token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It does not follow the grammar.
    Form,
    /// It is longer than a limit.
    Length,
}

/// How many bytes at the beginning need no second look: printable ASCII but `"` and `\`. Eight at a time.
pub(super) fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let mut len = 0;
    let (eights, _) = bytes.as_chunks::<8>();
    for eight in eights {
        let word = u64::from_le_bytes(*eight);
        let quote = word ^ (ONES * 0x22);
        let slash = word ^ (ONES * 0x5c);
        let special = word
            | word.wrapping_sub(ONES * 0x20)
            | (quote.wrapping_sub(ONES) & !quote)
            | (slash.wrapping_sub(ONES) & !slash);
        if special & HIGH != 0 {
            break;
        }
        len += 8;
    }
    let tail = bytes.get(len..).unwrap_or_default();
    len + tail.iter().take_while(|&&b| (0x20..0x80).contains(&b) && b != b'"' && b != b'\\').count()
}

/// The length of the escape that begins here; `None` when it has not arrived whole.
pub(super) fn escape_len(rest: &[u8]) -> Result<Option<usize>, Broken> {
    match rest.get(1) {
        None => Ok(None),
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(Some(2)),
        Some(b'u') => {
            let digits = rest.get(2..).unwrap_or_default();
            let digits = digits.get(..4).unwrap_or(digits);
            match digits.iter().all(u8::is_ascii_hexdigit) {
                true if digits.len() == 4 => Ok(Some(6)),
                true => Ok(None),
                false => Err(Broken::Form),
            }
        }
        Some(_) => Err(Broken::Form),
    }
}

/// The length of the UTF-8 character beyond ASCII that begins here; `None` when it has not arrived whole.
pub(super) fn utf8_len(rest: &[u8]) -> Result<Option<usize>, Broken> {
    let head = rest.get(..4).unwrap_or(rest);
    match std::str::from_utf8(head) {
        Ok(text) => Ok(text.chars().next().map(char::len_utf8)),
        Err(error) if error.valid_up_to() > 0 => {
            let valid = head.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok());
            Ok(valid.and_then(|valid| valid.chars().next()).map(char::len_utf8))
        }
        Err(error) => match error.error_len() {
            None => Ok(None),
            Some(_) => Err(Broken::Form),
        },
    }
}

/// The length of the word, when `rest` begins with it; `None` when it may yet.
pub(super) fn literal_len(rest: &[u8], word: &[u8], is_whole: bool) -> Result<Option<usize>, Broken> {
    if rest.starts_with(word) {
        return Ok(Some(word.len()));
    }
    if !is_whole && word.starts_with(rest) { Ok(None) } else { Err(Broken::Form) }
}

/// The length of the number that begins here, by the grammar of RFC 8259; `None` when it may go on in what has not
/// arrived.
pub(super) fn number_len(rest: &[u8], is_whole: bool) -> Result<Option<usize>, Broken> {
    let digits =
        |from: usize| rest.get(from..).unwrap_or_default().iter().take_while(|b| b.is_ascii_digit()).count();
    let mut len = usize::from(rest.first() == Some(&b'-'));
    let whole = digits(len);
    let mut is_good = whole == 1 || whole > 1 && rest.get(len) != Some(&b'0');
    len += whole;
    if is_good && rest.get(len) == Some(&b'.') {
        let fraction = digits(len + 1);
        is_good = fraction > 0;
        len += 1 + fraction;
    }
    if is_good && matches!(rest.get(len), Some(b'e' | b'E')) {
        len += 1 + usize::from(matches!(rest.get(len + 1), Some(b'+' | b'-')));
        let exponent = digits(len);
        is_good = exponent > 0;
        len += exponent;
    }
    if len > NUMBER_BYTES_MAX {
        return Err(Broken::Length);
    }
    if len >= rest.len() && !is_whole {
        return Ok(None);
    }
    if is_good { Ok(Some(len)) } else { Err(Broken::Form) }
}
