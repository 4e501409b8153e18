//! Who is calling, and what they may use.

use std::fmt;
use std::sync::Arc;

use crate::policy::Policy;
use crate::verdict::{Denial, DenialKind, Rule};

/// The group whose members are served where the policy has no `clients`.
pub(crate) const CLIENTS_GROUP: &str = "carapace-clients";

/// What is known about the other end of a connection. Every field comes from a key or from the kernel, never from what
/// the peer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The name of the key it proved to hold.
    pub agent: Option<String>,
    /// Its uid, by peer credentials or the kernel's socket tables.
    pub uid: Option<u32>,
    /// Its primary gid.
    pub gid: Option<u32>,
    /// The names of all its groups.
    pub groups: Vec<String>,
    /// Its user name.
    pub user: Option<String>,
    /// It came over a link that the operator opened to everybody (`--insecure`).
    pub insecure: bool,
    /// The uid of the daemon itself.
    pub own_uid: u32,
}

/// A peer that was admitted. Cheap to clone.
#[derive(Clone)]
pub struct Caller {
    peer: Arc<Peer>,
    name: Arc<str>,
    /// May use every tool: for questions that are asked for nobody in particular.
    is_operator: bool,
}

impl Caller {
    /// How the audit log names the caller: the agent's name, or `user(uid)`, or `uid 1000`, or `insecure`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is known about it.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.name
    }

    /// Nobody in particular.
    #[cfg(feature = "file")]
    pub(crate) fn operator() -> Self {
        Self { peer: Arc::default(), name: "operator".into(), is_operator: true }
    }

    fn new(peer: &Peer) -> Self {
        let name = match (&peer.agent, &peer.user, peer.uid) {
            (Some(agent), _, _) => agent.clone(),
            (None, Some(user), Some(uid)) => format!("{user}({uid})"),
            (None, None, Some(uid)) => format!("uid {uid}"),
            (None, _, None) => "insecure".to_owned(),
        };
        Self { peer: Arc::new(peer.clone()), name: name.into(), is_operator: false }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caller({})", self.name)
    }
}

/// One entry of `clients`: whom it means, and what they may use.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) who: Who,
    /// `None` is every tool.
    pub(crate) tools: Option<Vec<Arc<str>>>,
}

/// Whom an entry means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Agent(String),
    /// Every agent, also one that came over an insecure link.
    AnyAgent,
    Gid(u32),
    Group(String),
    Uid(u32),
    User(String),
}

impl Client {
    fn means(&self, peer: &Peer) -> bool {
        match &self.who {
            Who::Agent(name) => peer.agent.as_ref() == Some(name),
            Who::AnyAgent => peer.agent.is_some() || peer.insecure,
            Who::Gid(gid) => peer.gid == Some(*gid),
            Who::Group(name) => peer.groups.contains(name),
            Who::Uid(uid) => peer.uid == Some(*uid),
            Who::User(name) => peer.user.as_ref() == Some(name),
        }
    }
}

impl Policy {
    /// Decides whether a peer is served at all. Without `clients` in the file that is every agent with a key, root, the
    /// daemon's own uid, members of the group `carapace-clients`, and whoever comes over an insecure link. With
    /// `clients`, only those listed; root and the daemon's own uid are still served, but use only the tools listed for
    /// them.
    ///
    /// # Errors
    /// The refusal, when the peer is not served.
    pub fn admit(&self, peer: &Peer) -> Result<Caller, Box<Denial>> {
        let caller = Caller::new(peer);
        if self.still_admits(&caller) {
            return Ok(caller);
        }
        let rule = Rule::new(if self.clients.is_some() { "clients" } else { "no clients listed" }, 0);
        let reason = format!("{} is not among the clients", caller.name);
        Err(Denial::new(DenialKind::Denied, "this account may not use Carapace here", rule, reason))
    }

    /// Whether the peer of a caller that an earlier policy admitted would be admitted by this one.
    #[must_use]
    pub fn still_admits(&self, caller: &Caller) -> bool {
        let peer = caller.peer();
        let is_local_master = peer.uid.is_some_and(|uid| uid == 0 || uid == peer.own_uid);
        is_local_master
            || match &self.clients {
                Some(clients) => clients.iter().any(|client| client.means(peer)),
                None => is_default_client(peer),
            }
    }

    /// Whether the caller may use the tool of this name.
    pub(crate) fn may_use(&self, caller: &Caller, tool: &str) -> bool {
        if caller.is_operator {
            return true;
        }
        let Some(clients) = &self.clients else { return self.still_admits(caller) };
        clients.iter().filter(|client| client.means(caller.peer())).any(|client| match &client.tools {
            None => true,
            Some(tools) => tools.iter().any(|name| **name == *tool),
        })
    }
}

fn is_default_client(peer: &Peer) -> bool {
    peer.agent.is_some() || peer.insecure || peer.groups.iter().any(|group| group == CLIENTS_GROUP)
}
