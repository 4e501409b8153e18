//! Which agent to ask, and whether it is one to be trusted.

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Connects to the agent: the one that the environment names, or the first that answers at a usual place.
pub(crate) fn agent(variable: impl Fn(&str) -> Option<OsString>) -> Result<UnixStream, String> {
    let mut tried = String::new();
    for path in places(variable) {
        match UnixStream::connect(&path) {
            Ok(stream) => return vouch(stream, &path),
            Err(error) => {
                let separator = if tried.is_empty() { "" } else { ", " };
                let _ = write!(tried, "{separator}{}: {}", path.display(), reason(&error));
            }
        }
    }
    Err(format!("the agent cannot be reached ({tried})"))
}

fn places(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("CARAPACE_AGENT_SOCKET") {
        return vec![path];
    }
    let mut places = vec![PathBuf::from("/run/carapace/agent.sock")];
    places.extend(set("XDG_RUNTIME_DIR").map(|folder| folder.join("carapace/agent.sock")));
    places.extend(set("HOME").map(|folder| folder.join(".carapace/agent.sock")));
    places
}

/// Whoever listens hears the tool's arguments and input: it must be root's or this user's.
fn vouch(stream: UnixStream, path: &Path) -> Result<UnixStream, String> {
    let path = path.display();
    let owner = getsockopt(&stream, PeerCredentials).map_err(|errno| format!("{path}: {errno}"))?.uid();
    if owner == 0 || owner == geteuid().as_raw() {
        Ok(stream)
    } else {
        Err(format!("{path} belongs to uid {owner}, which is neither root nor you"))
    }
}

fn reason(error: &io::Error) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        "not there".to_owned()
    } else if kind == io::ErrorKind::ConnectionRefused {
        "nobody listens".to_owned()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_the_agent_or_the_usual_places_are_tried() {
        let all = |name: &str| match name {
            "CARAPACE_AGENT_SOCKET" => Some("/a".into()),
            _ => Some("/home/u".into()),
        };
        assert_eq!(places(all), [Path::new("/a")]);
        let empty = |name: &str| match name {
            "CARAPACE_AGENT_SOCKET" => Some(OsString::new()),
            "HOME" => Some("/home/u".into()),
            _ => None,
        };
        let expected = [Path::new("/run/carapace/agent.sock"), Path::new("/home/u/.carapace/agent.sock")];
        assert_eq!(places(empty), expected);
    }
}
