//! What works and perhaps not as meant: for `policy check`.

use super::fields::Reader;
use crate::patterns::Patterns;
use crate::problem::Position;
use crate::profile::Profile;
use crate::tool::{CliTool, Endpoint, Filter, HttpTool, Kind, MethodRules, RpcRules, Scheme, Segment, Tool};
use crate::verdict::Rule;

/// Variables that make many programs run code.
const CODE_VARIABLES: [&str; 14] = [
    "PATH",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "BASH_ENV",
    "ENV",
    "IFS",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PERL5OPT",
    "RUBYOPT",
    "NODE_OPTIONS",
    "GIT_SSH_COMMAND",
    "EDITOR",
];

/// Programs that run whatever their arguments say.
const RUNNERS: [&str; 22] = [
    "sh", "bash", "dash", "zsh", "fish", "busybox", "env", "xargs", "find", "ssh", "sudo", "doas", "nohup",
    "timeout", "python", "python3", "perl", "ruby", "node", "awk", "make", "docker",
];

/// Looks at one tool.
pub(super) fn tool(reader: &Reader<'_>, tool: &Tool, at: Position) {
    match &tool.kind {
        Kind::Cli(cli) => cli_tool(reader, cli, at),
        Kind::Http(http) => http_tool(reader, http, at),
    }
}

fn at(reader: &Reader<'_>, rule: &Rule) -> Position {
    reader.line(rule.line())
}

fn cli_tool(reader: &Reader<'_>, cli: &CliTool, place: Position) {
    let name = cli.binary.rsplit('/').next().unwrap_or_default();
    if RUNNERS.contains(&name) {
        reader.lint(
            place,
            format!("`{name}` runs whatever its arguments say: allow nothing that a caller can choose"),
        );
    }
    for pattern in &cli.allow {
        if pattern.glob.is_everything() {
            reader.lint(at(reader, &pattern.rule), "this allows any arguments");
        } else if pattern.glob.has_open_word() {
            let what = "`*` also matches a flag such as `--help`: `commands` allows flags by name";
            reader.lint(at(reader, &pattern.rule), what);
        }
    }
    for glob in &cli.env_allow {
        let literal = glob.as_literal();
        if glob.is_everything() {
            reader.lint(place, "env_allow lets the caller set any variable but those of the dynamic linker");
        } else if let Some(name) = CODE_VARIABLES.iter().find(|name| literal == Some(name.as_bytes())) {
            reader.lint(
                place,
                format!("env_allow: with `{name}` a caller can make many programs run other code"),
            );
        }
    }
}

fn http_tool(reader: &Reader<'_>, http: &HttpTool, place: Position) {
    let upstream = &http.upstream;
    let is_near = upstream.host == "localhost" || upstream.host == "::1" || upstream.host.starts_with("127.");
    if upstream.scheme == Scheme::Http && !is_near && !http.headers_inject.is_empty() {
        reader.lint(place, "injected headers go over the network unencrypted: use https");
    }
    rpc_rules(reader, &http.rpc, place);
    http.event_filters.values().flatten().for_each(|filter| filter_patterns(reader, filter));
    http.endpoints.iter().for_each(|endpoint| wide_endpoint(reader, endpoint));
}

fn wide_endpoint(reader: &Reader<'_>, endpoint: &Endpoint) {
    let has_rest = endpoint.path.iter().any(|segment| matches!(segment, Segment::Rest));
    if has_rest && !matches!(endpoint.method.as_str(), "GET" | "HEAD" | "OPTIONS") {
        reader
            .lint(at(reader, &endpoint.rule), format!("`**` allows {} on every path below", endpoint.method));
    }
}

fn rpc_rules(reader: &Reader<'_>, rules: &RpcRules, place: Position) {
    patterns(reader, &rules.allow, "method");
    unreached(reader, &rules.allow, &rules.deny);
    for method in rules.methods.values() {
        for filter in &method.filters {
            filter_patterns(reader, filter);
        }
        if let Some(profile) = rules.profile {
            other_destinations(reader, profile, method);
        }
    }
    let Some(profile) = rules.profile else { return };
    for name in profile.sending_methods {
        let is_allowed =
            rules.allow.find(name.as_bytes()).is_some() && rules.deny.find(name.as_bytes()).is_none();
        let has_filter = rules.methods.get(*name).is_some_and(|method| !method.filters.is_empty());
        if is_allowed && !has_filter {
            reader.lint(place, format!("`{name}` may go to any destination: it has no filter"));
        }
    }
}

/// A filter on one destination closes the others; whoever wrote it may not know that there are others.
fn other_destinations(reader: &Reader<'_>, profile: &Profile, method: &MethodRules) {
    let is_filtered = |name: &str| method.filters.iter().any(|filter| filter.covers(name));
    let Some(filter) =
        method.filters.iter().find(|filter| profile.destinations.iter().any(|d| filter.covers(d.name)))
    else {
        return;
    };
    let is_listed = |name: &str| {
        let listed =
            |(names, _): &(Vec<String>, Rule)| names.iter().any(|listed| profile.fold(listed) == name);
        method.allow_params.as_ref().is_some_and(listed)
    };
    let rest: Vec<_> =
        profile.destinations.iter().filter(|d| !is_filtered(d.name) && !is_listed(d.name)).collect();
    if !rest.is_empty() {
        let names: Vec<_> = rest.iter().map(|destination| destination.shown).collect();
        let what =
            format!("a call may also go to {}: they are denied, as they have no filter", names.join(", "));
        reader.lint(at(reader, &filter.rule), what);
    }
}

fn filter_patterns(reader: &Reader<'_>, filter: &Filter) {
    patterns(reader, &filter.allow, "value");
    unreached(reader, &filter.allow, &filter.deny);
}

fn patterns(reader: &Reader<'_>, allow: &Patterns, noun: &str) {
    for pattern in allow.iter() {
        if pattern.glob.is_everything() {
            reader.lint(at(reader, &pattern.rule), format!("this allows every {noun}"));
        } else if pattern.looks_like_regex {
            reader.lint(
                at(reader, &pattern.rule),
                "this is a glob, in which `.`, `^`, `$` and `|` mean themselves",
            );
        }
    }
}

fn unreached(reader: &Reader<'_>, allow: &Patterns, deny: &Patterns) {
    for pattern in deny.iter() {
        let is_unreached = pattern.glob.as_literal().is_some_and(|text| allow.find(text).is_none());
        if is_unreached {
            reader.lint(at(reader, &pattern.rule), "nothing that this denies is allowed anyway");
        }
    }
}
