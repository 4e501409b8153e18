//! What an API means beyond its syntax, as data. The engine knows no method and no parameter; a profile does.

use crate::tool::EndpointKind;

/// One API.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    pub(crate) endpoints: &'static [ProfileEndpoint],
    /// Parameters that are names for one thing: a filter on one is a filter on that thing.
    pub(crate) aliases: &'static [(&'static str, &'static str)],
    /// Parameters that together say where a call goes. Names are folded, see [`fold`].
    pub(crate) destinations: &'static [Destination],
    /// Methods that send something to destinations.
    pub(crate) sending_methods: &'static [&'static str],
    /// Parameters that may name a file on the host. Names are folded.
    pub(crate) files: &'static [&'static str],
    /// How long an event stream may be silent, in seconds.
    pub(crate) event_idle_secs: Option<u64>,
}

/// An endpoint of an API.
#[derive(Debug)]
pub(crate) struct ProfileEndpoint {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) kind: EndpointKind,
    /// The names its query may hold.
    pub(crate) query: &'static [&'static str],
}

/// A parameter that says where a call goes.
#[derive(Debug)]
pub(crate) struct Destination {
    /// Folded.
    pub(crate) name: &'static str,
    /// As the API's documents spell it.
    pub(crate) shown: &'static str,
    pub(crate) format: Format,
    /// How the audit record calls it where the policy does not say.
    pub(crate) audit_as: Option<&'static str>,
    /// What the caller hears when a pattern refuses it.
    pub(crate) noun: &'static str,
}

/// What a value must look like before any pattern sees it, because the upstream would normalise anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `false`, which counts as absent; nothing else can be judged by patterns.
    Flag,
    /// Canonical base64.
    GroupId,
    /// A phone number in E.164, a UUID in lower case, or a username.
    Recipient,
    /// A username.
    Username,
}

/// The profiles there are.
pub(crate) const PROFILES: [&Profile; 2] = [&SIGNAL_CLI, &JSON_RPC];

const ENDPOINTS: [ProfileEndpoint; 3] = [
    ProfileEndpoint { method: "POST", path: "/api/v1/rpc", kind: EndpointKind::Rpc, query: &[] },
    ProfileEndpoint {
        method: "GET",
        path: "/api/v1/events",
        kind: EndpointKind::Stream,
        query: &["account"],
    },
    ProfileEndpoint { method: "GET", path: "/api/v1/check", kind: EndpointKind::Plain, query: &[] },
];

/// signal-cli's HTTP daemon. It sends to the union of all destinations, and reads a list under any spelling of its name.
pub(crate) static SIGNAL_CLI: Profile = Profile {
    name: "signal-cli",
    endpoints: &ENDPOINTS,
    aliases: &[("recipientnumber", "recipient")],
    destinations: &[
        Destination {
            name: "recipient",
            shown: "recipient",
            format: Format::Recipient,
            audit_as: Some("phone_number"),
            noun: "recipient",
        },
        Destination {
            name: "groupid",
            shown: "groupId",
            format: Format::GroupId,
            audit_as: Some("group_id"),
            noun: "group",
        },
        Destination {
            name: "username",
            shown: "username",
            format: Format::Username,
            audit_as: Some("username"),
            noun: "username",
        },
        Destination {
            name: "notetoself",
            shown: "noteToSelf",
            format: Format::Flag,
            audit_as: None,
            noun: "destination",
        },
    ],
    sending_methods: &[
        "send",
        "sendReaction",
        "sendReceipt",
        "sendTyping",
        "remoteDelete",
        "sendPollCreate",
        "sendPollVote",
        "sendPollTerminate",
        "sendPaymentNotification",
        "sendMessageRequestResponse",
    ],
    files: &["attachment", "avatar", "path", "previewimage", "quoteattachment"],
    event_idle_secs: Some(45),
};

/// Any JSON-RPC service: the same endpoints, and nothing known about its parameters.
pub(crate) static JSON_RPC: Profile = Profile {
    name: "jsonrpc",
    endpoints: &ENDPOINTS,
    aliases: &[],
    destinations: &[],
    sending_methods: &[],
    files: &[],
    event_idle_secs: None,
};

impl Profile {
    /// The folded name of a parameter, by which all its spellings are one.
    pub(crate) fn fold(&self, name: &str) -> String {
        let folded = fold(name);
        match self.aliases.iter().find(|(alias, _)| *alias == folded) {
            Some((_, name)) => (*name).to_owned(),
            None => folded,
        }
    }

    pub(crate) fn destination(&self, folded: &str) -> Option<&'static Destination> {
        self.destinations.iter().find(|destination| destination.name == folded)
    }
}

/// ASCII case, dashes, underscores and one final `s` make no difference: `group-id`, `group_id`, `groupIds` are `groupid`.
pub(crate) fn fold(name: &str) -> String {
    let mut folded: String =
        name.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect();
    if folded.len() > 1 && folded.ends_with('s') {
        folded.pop();
    }
    folded
}

impl Format {
    /// Whether the value has the form, and what it would have to be.
    pub(crate) fn check(self, value: &str) -> Result<(), &'static str> {
        let (is_good, wanted) = match self {
            Self::Flag => (false, "cannot be judged and must be left out"),
            Self::GroupId => (is_canonical_base64(value), "must be a group id in plain base64"),
            Self::Recipient => (
                is_e164(value) || is_uuid(value) || is_username(value),
                "must be a phone number (+ and digits), a UUID in lower case or a username",
            ),
            Self::Username => (is_username(value), "must be a username like name.01"),
        };
        if is_good { Ok(()) } else { Err(wanted) }
    }
}

fn is_e164(value: &str) -> bool {
    match value.as_bytes() {
        [b'+', b'1'..=b'9', rest @ ..] => {
            (1..=14).contains(&rest.len()) && rest.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

fn is_uuid(value: &str) -> bool {
    value.len() == 36
        && value.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// `name.01`, also behind signal-cli's prefix `u:`.
fn is_username(value: &str) -> bool {
    let value = value.strip_prefix("u:").unwrap_or(value);
    let Some((nick, number)) = value.split_once('.') else { return false };
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (3..=32).contains(&nick.len())
        && nick.bytes().all(is_word)
        && !nick.starts_with(|c: char| c.is_ascii_digit())
        && (2..=9).contains(&number.len())
        && number.bytes().all(|b| b.is_ascii_digit())
}

/// Whether no other base64 text decodes to the same bytes.
fn is_canonical_base64(value: &str) -> bool {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let body = value.trim_end_matches('=');
    let padding = value.len() - body.len();
    let unused_bits = match padding {
        0 => 0,
        1 => 0b11,
        2 => 0b1111,
        _ => return false,
    };
    let last = body.bytes().last().and_then(digit);
    value.len().is_multiple_of(4)
        && body.bytes().all(|b| digit(b).is_some())
        && last.is_some_and(|last| last & unused_bits == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_spellings() {
        for name in ["groupId", "groupIds", "group-id", "GROUP_IDS", "groupid"] {
            assert_eq!(fold(name), "groupid");
        }
        assert_eq!(SIGNAL_CLI.fold("recipientNumbers"), "recipient");
        assert_eq!(JSON_RPC.fold("recipientNumber"), "recipientnumber");
        assert_eq!(fold("s"), "s");
    }

    #[test]
    fn knows_strict_recipients() {
        let good = ["+12025550123", "0e5e5b7a-0000-4abc-9def-0123456789ab", "alice.01", "u:alice_b.1234"];
        let bad = [
            "",
            "+",
            "+0123",
            "12025550123",
            "+1 (202) 555-0123",
            "+1202555012\u{0663}",
            "+1202555012x",
            "alice",
            ".01",
            "0E5E5B7A-0000-4ABC-9DEF-0123456789AB",
            "1-1-1-1-1",
            "PNI:0e5e5b7a-0000-4abc-9def-0123456789ab",
            "+1202555012345678",
            "+12025550123\n",
            "１",
            "a b.01",
        ];
        for value in good {
            assert!(Format::Recipient.check(value).is_ok(), "{value}");
        }
        for value in bad {
            assert!(Format::Recipient.check(value).is_err(), "{value}");
        }
    }

    #[test]
    fn knows_canonical_base64() {
        for value in ["AAAA", "QQ==", "QUI=", "EdoyL6lVZPnzLJJfkAVnCm4iOYcM2bkqnQbGV2gzo/U="] {
            assert!(Format::GroupId.check(value).is_ok(), "{value}");
        }
        for value in ["", "=", "QR==", "QUJ=", "QQ=", "Q Q=", "QQ", "QQ==\n", "A=A=", "===="] {
            assert!(Format::GroupId.check(value).is_err(), "{value}");
        }
    }
}
