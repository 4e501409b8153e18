//! The account that jobs run as: what a login would tell them about themselves.

use nix::unistd::{User, getuid};
use std::ffi::OsString;
use std::path::PathBuf;

/// An account of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub(crate) name: OsString,
    pub(crate) home: PathBuf,
}

impl Account {
    /// Our own. May ask a directory service, so it is looked up once, at the start.
    pub fn own() -> Self {
        let uid = getuid();
        match User::from_uid(uid) {
            Ok(Some(user)) => Self { name: user.name.into(), home: user.dir },
            Ok(None) | Err(_) => {
                log::warn!("uid {uid} has no account: jobs have HOME=/ and the number for a name");
                Self { name: uid.to_string().into(), home: "/".into() }
            }
        }
    }
}
