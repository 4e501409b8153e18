//! The client's side of an event stream: skips the head, takes the chunks apart.

/// Where in a response the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the head; so many bytes of its end have been seen.
    Head(usize),
    /// In a chunk's size.
    Size(usize),
    /// In the line that a size stands in, behind the digits.
    SizeEnd(usize),
    /// In a chunk; so many bytes of it are to come.
    Data(usize),
    /// In the line end behind a chunk.
    DataEnd,
    /// Behind the last chunk.
    Done,
}

/// Takes a chunked response apart, however it was cut.
#[derive(Debug)]
pub(crate) struct Chunks {
    place: Place,
}

impl Chunks {
    pub(crate) fn new() -> Self {
        Self { place: Place::Head(0) }
    }

    /// Whether the last chunk has come.
    pub(crate) fn is_done(&self) -> bool {
        self.place == Place::Done
    }

    /// Gives the body's bytes in `bytes` to `each`.
    pub(crate) fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while let [first, rest @ ..] = bytes {
            match self.place {
                Place::Head(seen) => {
                    let next = if b"\r\n\r\n".get(seen) == Some(first) {
                        seen + 1
                    } else {
                        usize::from(*first == b'\r')
                    };
                    self.place = if next == 4 { Place::Size(0) } else { Place::Head(next) };
                }
                Place::Size(size) => {
                    self.place =
                        match char::from(*first).to_digit(16).and_then(|digit| usize::try_from(digit).ok()) {
                            Some(digit) => Place::Size(size.saturating_mul(16).saturating_add(digit)),
                            None => Place::SizeEnd(size),
                        };
                    end_size_line(&mut self.place, *first);
                }
                Place::SizeEnd(_) => end_size_line(&mut self.place, *first),
                Place::Data(left) => {
                    let (data, behind) = bytes.split_at(left.min(bytes.len()));
                    each(data);
                    self.place =
                        if data.len() == left { Place::DataEnd } else { Place::Data(left - data.len()) };
                    bytes = behind;
                    continue;
                }
                Place::DataEnd if *first == b'\n' => self.place = Place::Size(0),
                Place::DataEnd | Place::Done => {}
            }
            bytes = rest;
        }
    }
}

/// A size's line ends at the line feed.
fn end_size_line(place: &mut Place, byte: u8) {
    if let (Place::SizeEnd(size), b'\n') = (*place, byte) {
        *place = if size == 0 { Place::Done } else { Place::Data(size) };
    }
}

#[cfg(test)]
mod tests {
    use super::Chunks;

    #[test]
    fn a_response_is_taken_apart_however_it_is_cut() {
        let response = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        for step in 1..response.len() {
            let mut chunks = Chunks::new();
            let mut body = Vec::new();
            for piece in response.chunks(step) {
                assert!(!chunks.is_done() || piece.iter().all(|byte| b"\r\n".contains(byte)));
                chunks.take(piece, |data| body.extend_from_slice(data));
            }
            assert!(chunks.is_done());
            assert_eq!(body, b"abc0123456789", "in steps of {step}");
        }
    }
}
