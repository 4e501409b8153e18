//! Lines of a large file: backwards from its end, forwards from a place, and where a time begins.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::time::SystemTime;

use super::record::time_of;

const BLOCK_BYTES: usize = 64 * 1024;

/// The whole lines of a file from the last to the first, each without its line end.
pub(super) struct Backwards<R> {
    file: R,
    /// Where in the file `held` begins.
    position: u64,
    /// What has been read and not given out.
    held: Vec<u8>,
    block: usize,
}

impl<R: Read + Seek> Backwards<R> {
    /// From the last line end on: what stands after it is not a line yet.
    pub(super) fn new(file: R) -> io::Result<Self> {
        Self::with_block(file, BLOCK_BYTES)
    }

    fn with_block(mut file: R, block: usize) -> io::Result<Self> {
        let position = file.seek(SeekFrom::End(0))?;
        let mut this = Self { file, position, held: Vec::new(), block };
        // The torn end goes; the line end before it stays, and ends the last line.
        let end = this.find_line_end(0)?;
        this.held.truncate(end);
        Ok(this)
    }

    /// The place behind the last whole line; asked before any line is taken.
    pub(super) fn end(&self) -> u64 {
        self.position + u64::try_from(self.held.len()).unwrap_or_default()
    }

    /// The line before those given out already.
    pub(super) fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.held.pop().is_none() {
            // Nothing held means that the last block began with a line, or that the file is done.
            let end = self.find_line_end(0)?;
            if end == 0 {
                return Ok(None);
            }
            self.held.truncate(end);
            self.held.pop();
        }
        let start = self.find_line_end(0)?;
        Ok(Some(self.held.split_off(start)))
    }

    /// Behind which byte of `held` the last line end stands; 0 when the file has none before.
    fn find_line_end(&mut self, mut searched: usize) -> io::Result<usize> {
        let mut block = self.block;
        loop {
            let unsearched = self.held.len() - searched;
            let found = self.held.iter().take(unsearched).rposition(|byte| *byte == b'\n');
            if let Some(at) = found {
                return Ok(at + 1);
            }
            if self.position == 0 {
                return Ok(0);
            }
            searched = self.held.len();
            self.read_before(block)?;
            // A line longer than a block would otherwise be copied once a block.
            block *= 2;
        }
    }

    fn read_before(&mut self, block: usize) -> io::Result<()> {
        let start = self.position.saturating_sub(u64::try_from(block).unwrap_or(u64::MAX));
        let length = usize::try_from(self.position - start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut bytes)?;
        bytes.append(&mut self.held);
        self.held = bytes;
        self.position = start;
        Ok(())
    }
}

/// Calls `each` with every whole line from `start` on (with its line end), until it says that it has enough. The place
/// behind the last whole line.
pub(super) fn forwards<E: From<io::Error>>(
    file: &mut File,
    start: u64,
    mut each: impl FnMut(&[u8]) -> Result<bool, E>,
) -> Result<u64, E> {
    file.seek(SeekFrom::Start(start))?;
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    let mut place = start;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(place);
        }
        place += u64::try_from(read).unwrap_or_default();
        if !each(&line)? {
            return Ok(place);
        }
    }
}

/// A place at the beginning of a line, near and not behind the first record of `since`: records stand in the order of time.
pub(super) fn bisect(file: &mut File, since: SystemTime) -> io::Result<u64> {
    let mut low = 0;
    let mut high = file.seek(SeekFrom::End(0))?;
    while high - low > u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX) {
        let middle = low + (high - low) / 2;
        match record_after(file, middle, high)? {
            Some((start, time)) if time < since => low = start,
            Some(_) | None => high = middle,
        }
    }
    Ok(low)
}

/// The first record that begins in a place from `start` to `end`, and its time.
fn record_after(file: &mut File, start: u64, end: u64) -> io::Result<Option<(u64, SystemTime)>> {
    let mut place = start;
    let mut found = None;
    forwards(file, start, |line| {
        // The first line is only the end of the one that `start` fell into.
        let time = if place == start { None } else { time_of(line) };
        found = time.map(|time| (place, time));
        place += u64::try_from(line.len()).unwrap_or_default();
        io::Result::Ok(found.is_none() && place < end)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};
    use std::time::{Duration, SystemTime};

    use super::{Backwards, bisect, forwards};

    fn backwards(text: &str, block: usize) -> Vec<String> {
        let mut lines = Backwards::with_block(Cursor::new(text.as_bytes()), block).expect("reads");
        let mut all = Vec::new();
        while let Some(line) = lines.line().expect("reads") {
            all.push(String::from_utf8(line).expect("text"));
        }
        all
    }

    #[test]
    fn lines_come_backwards_whatever_the_block() {
        let texts =
            ["", "\n", "\n\n", "a\n", "a\nbc\n", "a\n\nbcdefghijklmnop\nq\n", "\na\n", "a\nbc\ntorn", "torn"];
        for text in texts {
            let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
            let mut expected: Vec<_> = whole.lines().map(str::to_owned).collect();
            expected.reverse();
            for block in 1..20 {
                assert_eq!(backwards(text, block), expected, "{text:?} in blocks of {block}");
            }
        }
    }

    #[test]
    fn bisecting_finds_the_first_record_of_a_time() {
        let path = std::env::temp_dir().join(format!("carapace-debug-bisect-{}", std::process::id()));
        let mut text = Vec::new();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for second in 0..5_000 {
            let at = humantime::format_rfc3339_micros(start + Duration::from_secs(second));
            writeln!(text, r#"{{"timestamp":"{at}","n":{second}}}"#).expect("a vector takes all");
            writeln!(text, "not a record").expect("a vector takes all");
        }
        std::fs::write(&path, &text).expect("a temporary file");
        let mut file = std::fs::File::open(&path).expect("opens");
        for second in [0, 1, 2_499, 4_999] {
            let since = start + Duration::from_secs(second);
            let place = bisect(&mut file, since).expect("reads");
            let mut before = 0;
            let mut found = None;
            forwards(&mut file, place, |line| {
                let time = super::time_of(line);
                before += usize::from(time.is_none_or(|time| time < since));
                found = time.filter(|time| *time >= since);
                std::io::Result::Ok(found.is_none())
            })
            .expect("reads");
            assert_eq!(found, Some(since));
            assert!(before < 5_000, "{before} lines read in vain");
        }
        std::fs::remove_file(&path).expect("removes");
    }
}
