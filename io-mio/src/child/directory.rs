//! The directory a job starts in, opened before it is checked and entered by the descriptor that was checked, so that
//! nobody can put another in its place in between.

use carapace_policy::CwdRule;
use carapace_proto::machine::StartError;
use nix::errno::Errno;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Opens the directory that a job is to start in, if the rule allows it.
pub(crate) fn open(rule: CwdRule<'_>) -> Result<File, StartError> {
    let (path, roots) = match rule {
        CwdRule::Fixed(path) => (Path::new(path), None),
        CwdRule::Caller { dir, roots } => (Path::new(OsStr::from_bytes(dir)), Some(roots)),
    };
    let directory = open_path(path).map_err(|error| refusal(&error))?;
    let Some(roots) = roots else { return Ok(directory) };
    let real = resolved(&directory).map_err(|error| refusal(&error))?;
    for root in roots {
        match open_path(Path::new(root)).and_then(|root| resolved(&root)).map_err(|error| refusal(&error)) {
            Ok(root) if real.starts_with(&root) => return Ok(directory),
            Err(StartError::NoRoom) => return Err(StartError::NoRoom),
            Ok(_) | Err(_) => {}
        }
    }
    Err(StartError::BadDirectory)
}

/// What cannot be opened is no directory to run in, unless nothing can be opened.
fn refusal(error: &io::Error) -> StartError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => StartError::NoRoom,
        _ => StartError::BadDirectory,
    }
}

/// Opens a directory as a place only: nothing in it can be read through this descriptor.
fn open_path(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Where an open directory really is, whatever symbolic links led there.
fn resolved(directory: &File) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()))?;
    // The kernel says "(unreachable)" of what lies outside our root.
    if path.is_absolute() { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn allows(dir: &Path, root: &Path) -> bool {
        let roots = [root.to_str().unwrap().to_owned()];
        let rule = CwdRule::Caller { dir: dir.as_os_str().as_bytes(), roots: &roots };
        match open(rule) {
            Ok(directory) => {
                assert_eq!(resolved(&directory).unwrap(), dir.canonicalize().unwrap());
                true
            }
            Err(error) => {
                assert_eq!(error, StartError::BadDirectory);
                false
            }
        }
    }

    #[test]
    fn only_what_really_lies_below_a_root_is_entered() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for name in ["work/deep", "work-not", "other"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("work/file"), "").unwrap();
        symlink(at("other"), at("work/out")).unwrap();
        symlink(at("work/deep"), at("other/in")).unwrap();
        symlink(at("work"), at("alias")).unwrap();
        for inside in ["work", "work/deep", "work/deep/..", "other/in", "alias/deep"] {
            assert!(allows(&at(inside), &at("work")), "{inside}");
            assert!(allows(&at(inside), &at("alias")), "{inside} below a root that is a link");
        }
        for outside in ["work-not", "other", "work/out", "work/..", "work/file", "work/missing"] {
            assert!(!allows(&at(outside), &at("work")), "{outside}");
        }
        assert!(!allows(&at("work"), &at("missing")), "a root that is missing allows nothing");
        assert!(allows(&at("work"), Path::new("/")));
    }

    #[test]
    fn the_policys_own_directory_is_entered_as_it_is() {
        assert!(open(CwdRule::Fixed("/")).is_ok());
        assert_eq!(open(CwdRule::Fixed("/nonexistent")).unwrap_err(), StartError::BadDirectory);
    }
}
