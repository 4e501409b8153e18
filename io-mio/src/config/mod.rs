//! Configuration: flags win over the environment, the environment over defaults, and each value knows where it is from.

pub mod agent;
pub mod server;
mod setting;

pub(crate) use setting::process_environment;
pub use setting::{Environment, Origin, Setting};

use crate::exit::{Exit, Fatal};
use crate::log::Format;
use clap::{Args, Parser};
use log::LevelFilter;
use setting::Reader;
use std::ffi::OsString;
use std::io::{self, Write as _};

/// What a daemon was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To say what is wrong with what it would read, and start nothing.
    Check,
    /// To say what is in force and where from.
    PrintConfig,
    /// To run.
    Run,
}

/// Flags of both daemons.
#[derive(Args, Debug)]
struct CommonFlags {
    /// Log this and worse: off, error, warn, info, debug or trace [env: CARAPACE_LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Log as JSON, one object a line [env: CARAPACE_LOG_JSON]
    #[arg(long)]
    log_json: bool,

    /// Read everything, say what is wrong, start nothing
    #[arg(long, conflicts_with = "print_config")]
    check: bool,

    /// Print what is in force and where it comes from
    #[arg(long)]
    print_config: bool,
}

/// Settings of both daemons.
#[derive(Debug)]
pub struct Common {
    /// What to do.
    pub purpose: Purpose,
    /// What is logged.
    pub log_level: Setting<LevelFilter>,
    /// How it is logged.
    pub log_json: Setting<bool>,
}

impl Common {
    fn read(flags: &CommonFlags, reader: &Reader<'_>) -> Result<Self, Fatal> {
        let purpose = match (flags.check, flags.print_config) {
            (true, _) => Purpose::Check,
            (false, true) => Purpose::PrintConfig,
            (false, false) => Purpose::Run,
        };
        let log_level =
            reader.read("--log-level", flags.log_level.as_deref(), "CARAPACE_LOG_LEVEL", "info", |text| {
                text.parse().map_err(|_| "off, error, warn, info, debug or trace")
            })?;
        let log_json = reader.switch("--log-json", flags.log_json, "CARAPACE_LOG_JSON")?;
        Ok(Self { purpose, log_level, log_json })
    }

    /// How lines of the log look.
    pub const fn log_format(&self) -> Format {
        if self.log_json.value { Format::Json } else { Format::Text }
    }

    fn table(&self) -> [Row; 2] {
        [
            self.log_level.row(|level| level.as_str().to_ascii_lowercase()),
            self.log_json.row(ToString::to_string),
        ]
    }
}

/// A line of `--print-config`: name, value, origin.
type Row = (&'static str, String, String);

/// Parses a command line. `None`: help or the version was asked for and printed.
fn parse<F: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<Option<F>, Fatal> {
    match F::try_parse_from(args) {
        Ok(flags) => Ok(Some(flags)),
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            Err(Fatal::new(Exit::Usage, text))
        }
        Err(text) => {
            print(&text.render().to_string())?;
            Ok(None)
        }
    }
}

/// Prints what was asked for on standard output.
pub(crate) fn print(text: &str) -> Result<(), Fatal> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Fatal::new(Exit::Internal, format!("cannot print: {error}")))
}

fn print_table(rows: impl IntoIterator<Item = Row>) -> Result<(), Fatal> {
    let rows: Vec<Row> = rows.into_iter().collect();
    let width = |of: fn(&Row) -> &str| rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
    let (names, values) = (width(|row| row.0), width(|row| &row.1));
    let line = |(name, value, origin): &Row| format!("{name:<names$}  {value:<values$}  {origin}\n");
    print(&rows.iter().map(line).collect::<String>())
}
