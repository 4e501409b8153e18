//! The other programs of Carapace: beside our own, or built when cargo started us and built only ourselves.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs.
const PROGRAMS: [&str; 3] = ["carapace-server", "carapace-agent", "carapace-shim"];
/// The packages that they are in.
const PACKAGES: [&str; 2] = ["carapace-io-mio", "carapace-shim"];

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
    /// A shim from elsewhere.
    shim: Option<PathBuf>,
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
        let folder = own_folder()?;
        if let Some(cargo) = std::env::var_os("CARGO") {
            let missing = |why| MissingBinaries { folder: folder.clone(), why };
            build(Path::new(&cargo), &folder, &PACKAGES, tell).map_err(missing)?;
        }
        Self::all_in(folder, &PROGRAMS)
    }

    /// Those for a test that is no part of their packages: built by `cargo`, `carapace-debug` with them, as the test was.
    /// Several tests that do this at once wait for each other.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn build(cargo: &Path) -> Result<Self, MissingBinaries> {
        let folder = own_folder()?;
        let missing = |why| MissingBinaries { folder: folder.clone(), why };
        build(cargo, &folder, &[PACKAGES.as_slice(), &["carapace-debug"]].concat(), |_| ())
            .map_err(missing)?;
        Self::all_in(folder, &[PROGRAMS.as_slice(), &["carapace-debug"]].concat())
    }

    fn all_in(folder: PathBuf, programs: &[&str]) -> Result<Self, MissingBinaries> {
        let absent: Vec<_> = programs.iter().copied().filter(|name| !folder.join(name).is_file()).collect();
        if absent.is_empty() {
            Ok(Self { folder, shim: None })
        } else {
            Err(MissingBinaries { folder, why: format!("no {}", absent.join(", no ")) })
        }
    }

    /// The same with another shim: the statically linked one is built by itself.
    #[must_use]
    pub fn with_shim(mut self, shim: PathBuf) -> Self {
        self.shim = Some(shim);
        self
    }

    /// The path of one of them.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        match &self.shim {
            Some(shim) if name == "carapace-shim" => shim.clone(),
            _ => self.folder.join(name),
        }
    }
}

/// The folder of the programs, if they were built as we were.
fn own_folder() -> Result<PathBuf, MissingBinaries> {
    let own = std::env::current_exe().map_err(|error| MissingBinaries {
        folder: PathBuf::from("."),
        why: format!("our own executable is not found ({error})"),
    })?;
    let beside = own.parent().unwrap_or_else(|| Path::new("/"));
    // Tests lie one folder deeper than the programs.
    Ok(if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside }.to_owned())
}

/// Builds packages into the folder that cargo has put ourselves into.
fn build(cargo: &Path, folder: &Path, packages: &[&str], tell: impl FnOnce(&str)) -> Result<(), String> {
    // target/debug is the profile `dev`; every other folder is named by its profile.
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut command = Command::new(cargo);
    command.args(["build", "--profile", profile]);
    for package in packages {
        command.args(["--package", package]);
    }
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    // The workspace that we were built in: the folder that we are run in need not be inside it.
    command.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    tell(&format!("cargo build --profile {profile} -p {}", packages.join(" -p ")));
    let status = command
        .status()
        .map_err(|error: io::Error| format!("cargo cannot be run ({error}); programs are missing"))?;
    if status.success() { Ok(()) } else { Err("the programs could not be built".to_owned()) }
}
