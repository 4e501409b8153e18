//! `carapace-debug audit`: the audit log, chosen from and made readable.

mod lines;
pub(crate) mod record;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;

use self::lines::Backwards;
use self::record::{Filter, Match};
use crate::failure::Failure;
use crate::output::{Format, Output};

/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
/// Records shown before following, when no other number was asked for.
const FOLLOW_FROM: usize = 10;

/// Show records of the audit log, newest last.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The log.
    #[arg(long, env = "CARAPACE_AUDIT_LOG", default_value = "/var/log/carapace/audit.log")]
    file: PathBuf,
    /// Only this tool.
    #[arg(long)]
    tool: Option<String>,
    /// Only what the policy decided so.
    #[arg(long, value_enum)]
    result: Option<PolicyResult>,
    /// Only this kind of action.
    #[arg(long, value_enum)]
    action: Option<ActionType>,
    /// Only this client: an agent's name, a user, a uid.
    #[arg(long)]
    client: Option<String>,
    /// Only from here on: `5m` ago, or a time like 2026-02-15T10:00:00Z.
    #[arg(long, value_parser = moment)]
    since: Option<SystemTime>,
    /// Only up to here: `5m` ago, or a time.
    #[arg(long, value_parser = moment)]
    until: Option<SystemTime>,
    /// Only the last so many.
    #[arg(long, short = 'n')]
    limit: Option<usize>,
    /// Go on as records are written, until interrupted.
    #[arg(long, short, conflicts_with = "until")]
    follow: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PolicyResult {
    Allow,
    Deny,
    #[value(name = "rate_limited", alias = "rate-limited")]
    RateLimited,
    Blocked,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ActionType {
    Http,
    Cli,
    Gateway,
}

/// A time, or how long ago it was.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "too long ago".to_owned());
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| "neither `5m`, `2h`, `3days` nor 2026-02-15T10:00:00Z".to_owned())
}

fn name(value: &impl ValueEnum) -> Option<String> {
    value.to_possible_value().map(|value| value.get_name().to_owned())
}

/// Prints the records asked for.
pub(crate) fn run(args: &Args, output: &mut Output) -> Result<bool, Failure> {
    let filter = Filter {
        tool: args.tool.clone(),
        result: args.result.as_ref().and_then(name),
        action: args.action.as_ref().and_then(name),
        client: args.client.clone(),
        since: args.since,
        until: args.until,
    };
    let mut file = open(&args.file)?;
    let limit = args.limit.or(args.follow.then_some(FOLLOW_FROM).filter(|_| args.since.is_none()));
    let start = match limit {
        Some(limit) => last(&file, &filter, limit, output)?,
        None => 0,
    };
    let place = if limit.is_some() { start } else { all(&mut file, &filter, output)? };
    if args.follow {
        follow(&args.file, file, place, &filter, output)?;
    }
    Ok(true)
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::Unavailable(format!("cannot read {}: {error}", path.display())))
}

fn show(line: &[u8], output: &mut Output) -> io::Result<()> {
    match output.format() {
        Format::Json => {
            output.raw(line)?;
            if line.last() == Some(&b'\n') { Ok(()) } else { output.raw(b"\n") }
        }
        Format::Text => output.line(record::rendered(line, output)),
    }
}

/// Calls `each` with the whole lines from `start` on; the place behind the last.
pub(crate) fn whole_lines(file: &mut File, start: u64, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
    lines::forwards(file, start, |line| {
        each(line);
        Ok(true)
    })
}

/// Shows every wanted record; the place behind the last line.
fn all(file: &mut File, filter: &Filter, output: &mut Output) -> Result<u64, Failure> {
    let start = filter.since.map_or(Ok(0), |since| lines::bisect(file, since))?;
    lines::forwards(file, start, |line| {
        let judged = filter.judge(line);
        if judged == Match::Wanted {
            show(line, output)?;
        }
        Ok(judged != Match::Newer)
    })
}

/// Shows the last `limit` wanted records, found from the end; the place behind the last line.
fn last(file: &File, filter: &Filter, limit: usize, output: &mut Output) -> Result<u64, Failure> {
    let mut backwards = Backwards::new(file)?;
    let end = backwards.end();
    let mut wanted = VecDeque::new();
    while wanted.len() < limit
        && let Some(line) = backwards.line()?
    {
        match filter.judge(&line) {
            Match::Older => break,
            Match::Newer | Match::Other => {}
            Match::Wanted => wanted.push_front(line),
        }
    }
    for line in wanted {
        show(&line, output)?;
    }
    Ok(end)
}

/// Shows wanted records as they are written, over rotation, until interrupted.
fn follow(
    path: &Path,
    mut file: File,
    mut place: u64,
    filter: &Filter,
    output: &mut Output,
) -> Result<(), Failure> {
    loop {
        output.flush()?;
        thread::sleep(FOLLOW_EVERY);
        // Looked at before reading: what the old file got until its rotation is then read to its end.
        let newest = std::fs::metadata(path).ok();
        let held = file.metadata()?;
        if held.len() < place {
            place = 0;
        }
        place = lines::forwards(&mut file, place, |line| {
            if filter.judge(line) == Match::Wanted {
                show(line, output)?;
            }
            Ok::<_, Failure>(true)
        })?;
        if newest.is_some_and(|newest| (newest.dev(), newest.ino()) != (held.dev(), held.ino()))
            && let Ok(next) = File::open(path)
        {
            file = next;
            place = 0;
        }
    }
}
