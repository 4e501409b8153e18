//! The other programs of Carapace: beside our own, or built when cargo started us and built only ourselves.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, and the package of each.
const PROGRAMS: [(&str, &str); 3] = [
    ("carapace-server", "carapace-io-mio"),
    ("carapace-agent", "carapace-io-mio"),
    ("carapace-shim", "carapace-shim"),
];

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

/// Programs that are neither there nor could be built.
#[derive(Debug)]
pub struct MissingBinaries {
    folder: PathBuf,
    why: String,
}

impl fmt::Display for MissingBinaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}: `cargo build --release` makes them", self.why, self.folder.display())
    }
}

impl std::error::Error for MissingBinaries {}

impl Binaries {
    /// Those beside our own executable. When cargo runs us it has built only ourselves: then what is missing or may be out
    /// of date is built first, after `tell` was told the command.
    ///
    /// # Errors
    /// When some are missing still.
    pub fn find(tell: impl FnOnce(&str)) -> Result<Self, MissingBinaries> {
        let missing = |folder: &Path, why: String| MissingBinaries { folder: folder.to_owned(), why };
        let own = std::env::current_exe()
            .map_err(|error| missing(Path::new("."), format!("our own executable is not found ({error})")))?;
        let beside = own.parent().unwrap_or_else(|| Path::new("/"));
        // Tests lie one folder deeper than the programs.
        let folder =
            if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside }.to_owned();
        if let Some(cargo) = std::env::var_os("CARGO") {
            build(Path::new(&cargo), &folder, tell).map_err(|why| missing(&folder, why))?;
        }
        let absent: Vec<_> =
            PROGRAMS.iter().map(|(name, _)| *name).filter(|name| !folder.join(name).is_file()).collect();
        if absent.is_empty() {
            Ok(Self { folder })
        } else {
            Err(missing(&folder, format!("no {}", absent.join(", no "))))
        }
    }

    /// The path of one of them.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Builds them into the folder that cargo has put ourselves into.
fn build(cargo: &Path, folder: &Path, tell: impl FnOnce(&str)) -> Result<(), String> {
    // target/debug is the profile `dev`; every other folder is named by its profile.
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut command = Command::new(cargo);
    command.args(["build", "--profile", profile]);
    for package in ["carapace-io-mio", "carapace-shim"] {
        command.args(["--package", package]);
    }
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    // The workspace that we were built in: the folder that we are run in need not be inside it.
    command.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    tell(&format!("cargo build --profile {profile} -p carapace-io-mio -p carapace-shim"));
    let status = command
        .status()
        .map_err(|error: io::Error| format!("cargo cannot be run ({error}); programs are missing"))?;
    if status.success() { Ok(()) } else { Err("the programs could not be built".to_owned()) }
}
