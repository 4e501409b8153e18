//! Secrets that the policy injects, and where the loader finds them.

use std::fmt;
use std::sync::Arc;

/// A secret's bytes. `Debug` prints `[REDACTED]`; clones share the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Wraps the bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for the one place that hands them to a child or an upstream.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Names one secret of one [`Policy`](crate::Policy).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretId(pub(crate) u32);

/// A secret that the loader has to fetch and [`provide`](crate::Policy::provide).
#[derive(Clone, Debug)]
pub struct SecretSource {
    pub(crate) id: SecretId,
    pub(crate) tool: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) place: SecretPlace,
    pub(crate) prefix: Arc<str>,
    pub(crate) problem: crate::Problem,
}

impl SecretSource {
    /// The name under which the secret is provided.
    #[must_use]
    pub fn id(&self) -> SecretId {
        self.id
    }

    /// The tool that needs it.
    #[must_use]
    pub fn tool(&self) -> &str {
        &self.tool
    }

    /// The header or variable it goes into.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is found.
    #[must_use]
    pub fn place(&self) -> &SecretPlace {
        &self.place
    }

    /// A problem at this place of the policy file, for a secret that cannot be fetched.
    #[must_use]
    pub fn problem(&self, message: impl Into<String>) -> crate::Problem {
        self.problem.with_message(message)
    }
}

/// Where a secret is found. Literals are in the policy already and are never asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    /// What this program prints; run without a shell, its output taken whole, and used for `cache_secs` seconds.
    Command {
        /// The program and its arguments; the program is an absolute path.
        argv: Vec<String>,
        /// How long an answer is good for, in seconds.
        cache_secs: u64,
    },
    /// The systemd credential of this name (a file in `$CREDENTIALS_DIRECTORY`).
    Credential(String),
    /// The server's own environment variable of this name.
    Env(String),
    /// The content of this file (an absolute path); read again when it changes.
    File(String),
}

/// What the loader has provided so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vault(Vec<Option<Held>>);

/// A value as it goes out (prefix included), and the bare secret to look for in output.
#[derive(Clone, Debug)]
struct Held {
    whole: Secret,
    bare: Secret,
}

impl Vault {
    #[cfg(feature = "file")]
    pub(crate) fn reserve(&mut self) -> SecretId {
        self.0.push(None);
        SecretId(u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX))
    }

    /// Puts something in every place that is still empty.
    #[cfg(feature = "file")]
    pub(crate) fn fill(&mut self) {
        let secret = Secret::new(b"[secret]");
        for slot in &mut self.0 {
            slot.get_or_insert_with(|| Held { whole: secret.clone(), bare: secret.clone() });
        }
    }

    pub(crate) fn put(&mut self, id: SecretId, prefix: &str, bare: Secret) {
        let whole = if prefix.is_empty() {
            bare.clone()
        } else {
            Secret::new(&[prefix.as_bytes(), bare.expose()].concat())
        };
        if let Some(slot) = self.0.get_mut(id.0 as usize) {
            *slot = Some(Held { whole, bare });
        }
    }

    pub(crate) fn whole(&self, id: SecretId) -> Option<&Secret> {
        self.held(id).map(|held| &held.whole)
    }

    pub(crate) fn bare(&self, id: SecretId) -> Option<&Secret> {
        self.held(id).map(|held| &held.bare)
    }

    fn held(&self, id: SecretId) -> Option<&Held> {
        self.0.get(id.0 as usize)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let mut vault = Vault::default();
        let id = vault.reserve();
        vault.put(id, "Bearer ", Secret::new(b"hunter2"));
        assert!(!format!("{vault:?}").contains("104"));
        assert!(format!("{vault:?}").contains("[REDACTED]"));
        assert_eq!(vault.whole(id).unwrap().expose(), b"Bearer hunter2");
    }
}
