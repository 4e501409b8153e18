//! A conforming client of event streams, deliberately simple. The fuzz target uses it, too.

/// What a conforming client learns: each event with its type, data and last event id, and the reconnection time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) events: Vec<(String, String, String)>,
    pub(crate) last_id: String,
    pub(crate) retry: Option<String>,
}

/// The parsing rules of WHATWG HTML 9.2.6, word for word and without regard to cost.
pub(crate) fn reference(bytes: &[u8]) -> Seen {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut seen = Seen::default();
    let (mut event_type, mut data, mut id) = (String::new(), String::new(), String::new());
    for line in complete_lines(text) {
        if line.is_empty() {
            seen.last_id.clone_from(&id);
            if let Some(data) = data.strip_suffix('\n') {
                let name = if event_type.is_empty() { "message" } else { &event_type };
                seen.events.push((name.to_owned(), data.to_owned(), id.clone()));
            }
            (event_type, data) = (String::new(), String::new());
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => event_type = value.to_owned(),
            "data" => data = data + value + "\n",
            "id" if !value.contains('\0') => id = value.to_owned(),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                seen.retry = Some(value.to_owned());
            }
            _ => {}
        }
    }
    seen
}

/// Lines that have an end; what follows the last end is discarded.
fn complete_lines(text: &str) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                chars.next_if_eq(&'\n');
                lines.push(std::mem::take(&mut line));
            }
            '\n' => lines.push(std::mem::take(&mut line)),
            c => line.push(c),
        }
    }
    lines
}

/// The comments of a stream, in order.
pub(crate) fn comments(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    complete_lines(text).into_iter().filter(|line| line.starts_with(':')).collect()
}
