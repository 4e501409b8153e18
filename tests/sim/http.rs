//! HTTP/1.1 as the simulator reads it: strictly, and without the product's own codecs, which are what is looked at.

/// What was read next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Head(Head),
    Body(Vec<u8>),
    /// The message is complete.
    End,
}

/// A start line and fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) start: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The word of the start line at `place`.
    pub(crate) fn word(&self, place: usize) -> &str {
        self.start.split(' ').nth(place).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    fn length(&self) -> Result<Option<u64>, String> {
        let lengths: Vec<_> =
            self.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).collect();
        match lengths.as_slice() {
            [] => Ok(None),
            [(_, value)] => value.parse().map(Some).map_err(|_| format!("Content-Length {value:?}")),
            _ => Err("two Content-Lengths".to_owned()),
        }
    }

    fn is_chunked(&self) -> Result<bool, String> {
        match self.field("transfer-encoding") {
            None => Ok(false),
            Some("chunked") if self.field("content-length").is_none() => Ok(true),
            Some(coding) => Err(format!("Transfer-Encoding {coding:?}")),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    ChunkHead,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    UntilClose,
}

/// Which of the two kinds of message are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Response,
}

/// Reads one message after another.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    kind: Kind,
    state: State,
    input: Vec<u8>,
}

impl Reader {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self { kind, state: State::Head, input: Vec::new() }
    }

    /// Whether nothing of a next message has come.
    pub(crate) fn is_between(&self) -> bool {
        self.state == State::Head && self.input.is_empty()
    }

    /// The end of the bytes: the parts that it completes, or why it comes too early.
    pub(crate) fn finish(&mut self) -> Result<Vec<Part>, String> {
        match self.state {
            State::UntilClose => {
                self.state = State::Head;
                Ok(vec![Part::End])
            }
            State::Head if self.input.is_empty() => Ok(Vec::new()),
            state => Err(format!("ends in {state:?} after {:?}", shown(&self.input))),
        }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Part>, String> {
        self.input.extend_from_slice(bytes);
        let mut parts = Vec::new();
        while self.step(&mut parts)? {}
        Ok(parts)
    }

    /// The first part alone; what follows stays. For requests that are only looked at.
    pub(crate) fn step(&mut self, parts: &mut Vec<Part>) -> Result<bool, String> {
        match self.state {
            State::Head => {
                let Some(head) = self.take_until(b"\r\n\r\n") else {
                    return if self.input.len() > 128 * 1024 {
                        Err("an endless head".to_owned())
                    } else {
                        Ok(false)
                    };
                };
                let head = parse_head(&head, self.kind)?;
                self.begin_body(head, parts)?;
                Ok(true)
            }
            State::Length(left) => {
                let data = self.take(left);
                if data.is_empty() {
                    return Ok(false);
                }
                let left = left - data.len() as u64;
                parts.push(Part::Body(data));
                self.state = State::Length(left);
                if left == 0 {
                    parts.push(Part::End);
                    self.state = State::Head;
                }
                Ok(true)
            }
            State::ChunkHead => {
                let Some(line) = self.take_until(b"\r\n") else { return Ok(false) };
                let line = String::from_utf8(line).map_err(|_| "chunk size".to_owned())?;
                let size = u64::from_str_radix(&line, 16).map_err(|_| format!("chunk size {line:?}"))?;
                self.state = if size == 0 { State::Trailer } else { State::ChunkData(size) };
                Ok(true)
            }
            State::ChunkData(left) => {
                let data = self.take(left);
                if data.is_empty() {
                    return Ok(false);
                }
                let left = left - data.len() as u64;
                parts.push(Part::Body(data));
                self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                Ok(true)
            }
            State::ChunkEnd => {
                let Some(line) = self.take_until(b"\r\n") else { return Ok(false) };
                self.state = State::ChunkHead;
                if line.is_empty() { Ok(true) } else { Err("no line end after a chunk".to_owned()) }
            }
            State::Trailer => {
                let Some(line) = self.take_until(b"\r\n") else { return Ok(false) };
                if line.is_empty() {
                    parts.push(Part::End);
                    self.state = State::Head;
                }
                Ok(true)
            }
            State::UntilClose => {
                let data = core::mem::take(&mut self.input);
                if !data.is_empty() {
                    parts.push(Part::Body(data));
                }
                Ok(false)
            }
        }
    }

    fn begin_body(&mut self, head: Head, parts: &mut Vec<Part>) -> Result<(), String> {
        let (length, is_chunked) = (head.length()?, head.is_chunked()?);
        let status = head.status();
        parts.push(Part::Head(head));
        self.state = match (self.kind, length) {
            _ if is_chunked => State::ChunkHead,
            (Kind::Response, _) if matches!(status, 100..=199 | 204 | 304) => State::Length(0),
            (_, Some(length)) => State::Length(length),
            (Kind::Request, None) => State::Length(0),
            (Kind::Response, None) => State::UntilClose,
        };
        if self.state == State::Length(0) {
            self.state = State::Head;
            parts.push(Part::End);
        }
        Ok(())
    }

    fn take(&mut self, most: u64) -> Vec<u8> {
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.input.len());
        self.input.drain(..count).collect()
    }

    /// What stands before `mark`, which is dropped.
    fn take_until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        let end = self.input.windows(mark.len()).position(|window| window == mark)?;
        let taken = self.input.drain(..end).collect();
        self.input.drain(..mark.len());
        Some(taken)
    }
}

fn parse_head(bytes: &[u8], kind: Kind) -> Result<Head, String> {
    let text = core::str::from_utf8(bytes).map_err(|_| format!("head {:?}", shown(bytes)))?;
    let mut lines = text.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    let is_good = match kind {
        Kind::Request => start.ends_with(" HTTP/1.1") && start.split(' ').count() == 3,
        Kind::Response => start.starts_with("HTTP/1.1 ") || start.starts_with("HTTP/1.0 "),
    };
    if !is_good || start.contains(['\r', '\n', '\0']) {
        return Err(format!("start line {start:?}"));
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("field {line:?}"))?;
        if name.is_empty() || name.contains([' ', '\t']) || value.contains(['\r', '\n', '\0']) {
            return Err(format!("field {line:?}"));
        }
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(Head { start, fields })
}

/// Bytes as text for a message, not too much of it.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let head = bytes.get(..bytes.len().min(160)).unwrap_or_default();
    String::from_utf8_lossy(head).into_owned()
}

/// The head and what is there of the body of the request that `bytes` begin with.
pub(crate) fn peek_request(bytes: &[u8]) -> Result<Option<(Head, Vec<u8>)>, String> {
    let mut reader = Reader::new(Kind::Request);
    reader.input.extend_from_slice(bytes);
    let (mut head, mut body) = (None, Vec::new());
    loop {
        let mut parts = Vec::new();
        let goes_on = reader.step(&mut parts)?;
        for part in parts {
            match part {
                Part::Head(part) => head = Some(part),
                Part::Body(part) => body.extend_from_slice(&part),
                Part::End => return Ok(head.map(|head| (head, body))),
            }
        }
        if !goes_on {
            return Ok(head.map(|head| (head, body)));
        }
    }
}
