//! Writing strings.

/// Appends `text` as a JSON string, with its quotes. Control characters, and U+2028 and U+2029 (which end a line for
/// some readers of a log), are escaped; everything else stands as itself.
pub fn escape(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if is_plain(text) {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        if !needs_escape(c) {
            continue;
        }
        out.extend_from_slice(text.get(plain..at).unwrap_or_default().as_bytes());
        plain = at + c.len_utf8();
        escape_char(out, c);
    }
    out.extend_from_slice(text.get(plain..).unwrap_or_default().as_bytes());
    out.push(b'"');
}

/// As [`escape`], for bytes that need not be UTF-8: each byte that is no part of a character becomes U+FFFD.
pub fn escape_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    escape(out, &String::from_utf8_lossy(bytes));
}

/// Whether all of it is ASCII that stands as itself: almost always. Looks at every byte, so that it can look at many at
/// once.
fn is_plain(text: &str) -> bool {
    text.bytes()
        .fold(true, |plain, byte| plain & (b' '..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\'))
}

fn needs_escape(c: char) -> bool {
    matches!(c, '"' | '\\' | '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

fn escape_char(out: &mut Vec<u8>, c: char) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        other => {
            const HEX: [u8; 16] = *b"0123456789abcdef";
            let code = u32::from(other);
            out.extend_from_slice(b"\\u");
            for shift in [12, 8, 4, 0] {
                out.push(HEX.get((code >> shift & 15) as usize).copied().unwrap_or(b'0'));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_any_parser_reads_back() {
        for text in ["", "plain", "\"\\\u{0}\u{1f}\u{7f}\n\r\t", "é😀\u{2028}", "a\"b"] {
            let mut out = Vec::new();
            escape(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            assert!(!out.iter().any(|b| *b < 0x20));
        }
        let mut out = Vec::new();
        escape_bytes(&mut out, b"a\xffb");
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), "a\u{fffd}b");
    }
}
