//! Names to addresses, off the loop: looking one up may take half a minute, and nothing here can be told to give up.

use crate::mail::{Letter, Post};
use carapace_proto::ids::ConnId;
use carapace_proto::time::{Duration, Instant};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::thread;

/// An answer is used for this long. Long enough that a burst of connections asks once, short enough that nobody who
/// moves a host notices.
const FRESH: Duration = Duration::from_secs(10);
/// Names come from the operator's files, so there are few; this is against a mistake.
const NAMES_MAX: usize = 256;
/// Look-up libraries are deeper than anything of ours.
const STACK_BYTES: usize = 512 * 1024;

/// Look-ups under way, and answers still fresh.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    names: HashMap<String, Name>,
}

#[derive(Debug)]
enum Name {
    /// Somebody is asking; these connections wait for the answer.
    Asked(Vec<ConnId>),
    Known {
        addresses: Vec<SocketAddr>,
        until: Instant,
    },
}

/// What is known about a name at once. The addresses have port 0.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Known(Vec<SocketAddr>),
    /// [`Resolver::resolved`] will say.
    Later,
}

impl Resolver {
    /// Looks up `host` on behalf of `conn`.
    pub(crate) fn resolve(
        &mut self,
        now: Instant,
        host: &str,
        conn: ConnId,
        post: &Post,
    ) -> io::Result<Answer> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Answer::Known(vec![SocketAddr::new(address, 0)]));
        }
        match self.names.get_mut(host) {
            Some(Name::Asked(waiting)) => {
                waiting.push(conn);
                return Ok(Answer::Later);
            }
            Some(Name::Known { addresses, until }) if *until > now => {
                return Ok(Answer::Known(addresses.clone()));
            }
            Some(Name::Known { .. }) | None => {}
        }
        if self.names.len() >= NAMES_MAX {
            self.names.retain(|_, name| matches!(name, Name::Asked(_)));
        }
        ask(host.to_owned(), post.clone())?;
        self.names.insert(host.to_owned(), Name::Asked(vec![conn]));
        Ok(Answer::Later)
    }

    /// Takes in an answer; says who waits for it. Failures are not remembered: the next one to ask asks again.
    pub(crate) fn resolved(&mut self, now: Instant, host: String, addresses: &[SocketAddr]) -> Vec<ConnId> {
        let waiting = match self.names.remove(&host) {
            Some(Name::Asked(waiting)) => waiting,
            Some(Name::Known { .. }) | None => Vec::new(),
        };
        if !addresses.is_empty() {
            self.names.insert(host, Name::Known { addresses: addresses.to_vec(), until: now + FRESH });
        }
        waiting
    }
}

fn ask(host: String, post: Post) -> io::Result<()> {
    let look_up = move || {
        // The port is of no interest here, but the standard library looks up a name only together with one.
        let addresses = match (host.as_str(), 0).to_socket_addrs() {
            Ok(found) => found.collect(),
            Err(error) => {
                log::warn!("cannot resolve {host}: {error}");
                Vec::new()
            }
        };
        post.send(Letter::Resolved { host, addresses });
    };
    thread::Builder::new().name("resolve".into()).stack_size(STACK_BYTES).spawn(look_up).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail;
    use mio::{Poll, Token};

    #[test]
    fn a_name_is_asked_for_once_and_remembered_for_a_while() {
        let poll = Poll::new().unwrap();
        let (post, letters) = mail::open(poll.registry(), Token(0)).unwrap();
        let (mut resolver, now) = (Resolver::default(), Instant::ORIGIN);
        for conn in [1, 3] {
            let answer = resolver.resolve(now, "localhost", ConnId(conn), &post).unwrap();
            assert_eq!(answer, Answer::Later);
        }
        let Letter::Resolved { host, addresses } = letters.recv().unwrap() else { panic!("not an answer") };
        assert!(addresses.iter().all(|address| address.ip().is_loopback()) && !addresses.is_empty());
        assert_eq!(resolver.resolved(now, host, &addresses), [ConnId(1), ConnId(3)]);
        let again = resolver.resolve(now, "localhost", ConnId(5), &post).unwrap();
        assert_eq!(again, Answer::Known(addresses));
        let stale = resolver.resolve(now + FRESH, "localhost", ConnId(5), &post).unwrap();
        assert_eq!(stale, Answer::Later);
    }

    #[test]
    fn a_literal_address_is_its_own_answer_and_a_failure_is_not_remembered() {
        let poll = Poll::new().unwrap();
        let (post, letters) = mail::open(poll.registry(), Token(0)).unwrap();
        let (mut resolver, now) = (Resolver::default(), Instant::ORIGIN);
        let literal = resolver.resolve(now, "::1", ConnId(1), &post).unwrap();
        assert_eq!(literal, Answer::Known(vec!["[::1]:0".parse().unwrap()]));
        for _ in 0..2 {
            let answer = resolver.resolve(now, "no such host.invalid", ConnId(1), &post).unwrap();
            assert_eq!(answer, Answer::Later);
            let Letter::Resolved { host, addresses } = letters.recv().unwrap() else { panic!("no answer") };
            assert!(addresses.is_empty());
            assert_eq!(resolver.resolved(now, host, &addresses), [ConnId(1)]);
        }
    }
}
