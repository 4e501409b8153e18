//! Tools of `type: http`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::common::{Context, absolute_path, patterns};
use super::fields::{Fields, Reader};
use super::filters::FilterSource;
use super::secrets::{Secrets, Target};
use super::yaml::Text;
use crate::glob::Glob;
use crate::patterns::Patterns;
use crate::profile::{JSON_RPC, PROFILES, Profile, SIGNAL_CLI};
use crate::secret::SecretId;
use crate::tool::{Endpoint, EndpointKind, Filter, HttpTool, RpcRules, Scheme, Segment, Upstream};
use crate::verdict::Rule;

/// Any of these makes a tool one that takes JSON-RPC.
const RPC_KEYS: [&str; 4] =
    ["jsonrpc_allow_methods", "jsonrpc_deny_methods", "jsonrpc_param_filters", "jsonrpc_allow_params"];

const MIB: u64 = 1024 * 1024;

/// Headers that belong to the connection and not to the request, or that the server writes itself.
const HEADERS_FORBIDDEN: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-encoding",
];

pub(super) fn read(
    fields: &mut Fields<'_, '_>,
    secrets: &mut Secrets<'_, '_>,
    context: &Context,
) -> Option<HttpTool> {
    let upstream = upstream(fields, context);
    let profile = profile(fields, context);
    let rpc = rpc_rules(fields, context, profile);
    let event_filters = event_filters(fields, context, profile, &rpc);
    let endpoints = endpoints(fields, context, profile);
    if endpoints.is_empty() {
        let what = "has neither JSON-RPC rules nor http_allow: everything is denied";
        fields.reader().warn(fields.at, format!("tool `{}` {what}", context.tool));
    }
    let idle = fields.number("event_idle_secs");
    let http = HttpTool {
        upstream: upstream?,
        endpoints,
        rpc,
        event_filters,
        headers_inject: headers_inject(fields, secrets, context),
        headers_allow: headers_allow(fields),
        max_body_bytes: size(fields, "max_body_bytes", 16 * MIB),
        max_response_bytes: size(fields, "max_response_bytes", 16 * MIB),
        max_event_bytes: size(fields, "max_event_bytes", 4 * MIB),
        event_idle: idle.or(profile.and_then(|profile| profile.event_idle_secs)).map(Duration::from_secs),
    };
    Some(http)
}

fn size(fields: &mut Fields<'_, '_>, key: &'static str, default: u64) -> usize {
    let bytes = fields.number(key).unwrap_or(default);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The profile the file names, or that the tool's name or its rules imply.
fn profile(fields: &mut Fields<'_, '_>, context: &Context) -> Option<&'static Profile> {
    if fields.has("api") {
        let api = fields.choice("api")?;
        return PROFILES.into_iter().find(|profile| profile.name == api);
    }
    if *context.tool == *SIGNAL_CLI.name {
        return Some(&SIGNAL_CLI);
    }
    RPC_KEYS.iter().any(|key| fields.has(key)).then_some(&JSON_RPC)
}

fn upstream(fields: &mut Fields<'_, '_>, context: &Context) -> Option<Upstream> {
    let url = fields.text("upstream");
    let host = fields.text("host");
    let ca_file = fields.text("ca_file");
    let Some(url) = url else {
        fields.reader().error(fields.at, format!("tool `{}` needs an `upstream`", context.tool));
        return None;
    };
    let mut upstream = match parse_upstream(&url.text) {
        Ok(upstream) => upstream,
        Err(what) => {
            fields.reader().error(url.at, what);
            return None;
        }
    };
    if let Some(host) = host {
        if !host.text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
            || host.text.is_empty()
        {
            fields.reader().error(host.at, "expected a value for the Host header");
        }
        upstream.host_header = host.text;
    }
    if let Some(file) = ca_file
        && absolute_path(fields.reader(), &file)
    {
        if upstream.scheme != Scheme::Https {
            fields.reader().error(file.at, "`ca_file` is only for https upstreams");
        }
        upstream.ca_file = Some(file.text);
    }
    Some(upstream)
}

/// The error is a whole message; it does not repeat the URL, which could hold a password.
fn parse_upstream(url: &str) -> Result<Upstream, &'static str> {
    const FORM: &str = "expected http://HOST[:PORT][/PATH], https://HOST[:PORT][/PATH] or unix:/PATH";
    if let Some(path) = url.strip_prefix("unix:") {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(FORM);
        }
        return Ok(Upstream {
            scheme: Scheme::Unix,
            host: path.to_owned(),
            port: 0,
            base_path: String::new(),
            host_header: "localhost".to_owned(),
            ca_file: None,
        });
    }
    let (scheme, default_port, rest) = if let Some(rest) = url.strip_prefix("http://") {
        (Scheme::Http, 80, rest)
    } else {
        (Scheme::Https, 443, url.strip_prefix("https://").ok_or(FORM)?)
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if authority.contains('@') {
        return Err("an upstream holds no user name or password: use headers_inject");
    }
    if path.contains(['?', '#', '%', '\\', ' '])
        || path.contains("//")
        || path.split('/').any(|p| p == "." || p == "..")
    {
        return Err("the path of an upstream must be plain");
    }
    let (host, port) = split_authority(authority, default_port).ok_or(FORM)?;
    Ok(Upstream {
        scheme,
        host: host.to_owned(),
        port,
        base_path: path.trim_end_matches('/').to_owned(),
        host_header: authority.to_owned(),
        ca_file: None,
    })
}

/// The host without brackets, and the port.
fn split_authority(authority: &str, default_port: u16) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        if !host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.') {
            return None;
        }
        (host, after)
    } else {
        let at = authority.find(':').unwrap_or(authority.len());
        let (host, port) = authority.split_at_checked(at)?;
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_') {
            return None;
        }
        (host, port)
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|&port: &u16| port != 0)?,
        None if port.is_empty() => default_port,
        None => return None,
    };
    (!host.is_empty()).then_some((host, port))
}

fn endpoints(
    fields: &mut Fields<'_, '_>,
    context: &Context,
    profile: Option<&'static Profile>,
) -> Vec<Endpoint> {
    let Some((_, node)) = fields.take("http_allow") else {
        let Some(profile) = profile else { return Vec::new() };
        let rule =
            || Rule::new(format!("{}: the endpoints of {}", context.tool, profile.name), context.at.line);
        let compile = |endpoint: &'static crate::profile::ProfileEndpoint| Endpoint {
            method: endpoint.method.to_owned(),
            path: endpoint.path.split('/').skip(1).map(|part| Segment::One(Glob::literal(part))).collect(),
            kind: endpoint.kind,
            query: Some(endpoint.query),
            rule: rule(),
        };
        return profile.endpoints.iter().map(compile).collect();
    };
    let reader = fields.reader();
    let mut endpoints = Vec::new();
    for (i, text) in reader.texts(node).into_iter().enumerate() {
        let rule = context.rule(&format!("http_allow[{i}]"), text.at.line);
        match parse_endpoint(&text.text, rule, profile) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(what) => reader.error(text.at, format!("`{}` {what}", text.text)),
        }
    }
    endpoints
}

/// `GET /path/*/with/**`. Where a tool has JSON-RPC rules, every body goes through them.
fn parse_endpoint(text: &str, rule: Rule, profile: Option<&Profile>) -> Result<Endpoint, String> {
    let (method, path) = text.split_once(' ').ok_or("is not `METHOD /path`")?;
    let is_method = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
    if !is_method || matches!(method, "CONNECT" | "TRACE") {
        return Err("does not begin with an HTTP method in capitals".to_owned());
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err("has no path that begins with `/`".to_owned());
    };
    let mut segments = Vec::new();
    let mut parts = rest.split('/').peekable();
    while let Some(part) = parts.next() {
        if part == "**" {
            if parts.peek().is_some() {
                return Err("has `**` before the end".to_owned());
            }
            segments.push(Segment::Rest);
        } else {
            segments.push(Segment::One(Glob::new(part).map_err(|error| error.to_string())?));
        }
    }
    let known = profile.and_then(|profile| profile.endpoints.iter().find(|known| known.path == path));
    let kind = match (known, profile) {
        (Some(known), _) if known.method == method => known.kind,
        (_, Some(_)) if !matches!(method, "GET" | "HEAD" | "OPTIONS") => EndpointKind::Rpc,
        (_, _) => EndpointKind::Plain,
    };
    Ok(Endpoint { method: method.to_owned(), path: segments, kind, query: None, rule })
}

fn headers_inject(
    fields: &mut Fields<'_, '_>,
    secrets: &mut Secrets<'_, '_>,
    context: &Context,
) -> Vec<(Arc<str>, SecretId)> {
    let mut injected: Vec<(Arc<str>, SecretId)> = Vec::new();
    for (name, node) in fields.entries("headers_inject") {
        if injected.iter().any(|(known, _)| known.eq_ignore_ascii_case(&name.text)) {
            fields.reader().error(name.at, format!("the header `{}` is there twice", name.text));
        }
        if is_header(fields.reader(), &name)
            && let Some(id) = secrets.read(context, &name, node, Target::Header)
        {
            injected.push((name.text.as_str().into(), id));
        }
    }
    injected
}

fn headers_allow(fields: &mut Fields<'_, '_>) -> Vec<String> {
    let names = fields.texts("headers_allow");
    let reader = fields.reader();
    let good = names.into_iter().filter(|name| {
        let lower = name.text.to_ascii_lowercase();
        if matches!(lower.as_str(), "authorization" | "cookie" | "proxy-authorization") {
            reader.error(
                name.at,
                format!("`{}` of a caller is never passed on: use headers_inject", name.text),
            );
            return false;
        }
        is_header(reader, name)
    });
    good.map(|name| name.text.to_ascii_lowercase()).collect()
}

fn is_header(reader: &Reader<'_>, name: &Text) -> bool {
    let is_token = !name.text.is_empty()
        && name.text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    let is_forbidden = HEADERS_FORBIDDEN.contains(&name.text.to_ascii_lowercase().as_str());
    if !is_token || is_forbidden {
        let what = if is_forbidden { "is written by the server itself" } else { "is no name for a header" };
        reader.error(name.at, format!("`{}` {what}", name.text));
    }
    is_token && !is_forbidden
}

fn rpc_rules(fields: &mut Fields<'_, '_>, context: &Context, profile: Option<&'static Profile>) -> RpcRules {
    let mut rules = RpcRules {
        profile,
        allow: Patterns::new(patterns(fields, context, "jsonrpc_allow_methods", "", Glob::new)),
        deny: Patterns::new(patterns(fields, context, "jsonrpc_deny_methods", "", Glob::new)),
        methods: BTreeMap::new(),
        attachment_paths: Vec::new(),
    };
    for path in fields.texts("attachment_paths") {
        if absolute_path(fields.reader(), &path) {
            rules.attachment_paths.push(path.text);
        }
    }
    for (method, node) in fields.entries("jsonrpc_param_filters") {
        check_method(fields.reader(), &rules, &method);
        let source = FilterSource { context, profile, key: "jsonrpc_param_filters", is_event: false };
        rules.methods.entry(method.text.clone()).or_default().filters =
            source.read(fields.reader(), &method, node);
    }
    for (method, node) in fields.entries("jsonrpc_allow_params") {
        check_method(fields.reader(), &rules, &method);
        let names = fields.reader().texts(node).into_iter().map(|name| name.text).collect();
        let rule = context.rule(&format!("jsonrpc_allow_params.{}", method.text), method.at.line);
        rules.methods.entry(method.text).or_default().allow_params = Some((names, rule));
    }
    rules
}

/// A rule for a method that cannot be called is a mistake: most likely the method's name is.
fn check_method(reader: &Reader<'_>, rules: &RpcRules, method: &Text) {
    let name = method.text.as_bytes();
    if rules.allow.find(name).is_none() || rules.deny.find(name).is_some() {
        reader.error(
            method.at,
            format!("method `{}` is not allowed, so this would have no effect", method.text),
        );
    }
}

/// Filters on events. A tool without JSON-RPC rules has no methods; its events have names all the same.
fn event_filters(
    fields: &mut Fields<'_, '_>,
    context: &Context,
    profile: Option<&'static Profile>,
    rules: &RpcRules,
) -> BTreeMap<String, Vec<Filter>> {
    let mut all = BTreeMap::new();
    for (event, node) in fields.entries("event_filters") {
        if profile.is_some() {
            check_method(fields.reader(), rules, &event);
        }
        let source = FilterSource { context, profile, key: "event_filters", is_event: true };
        all.insert(event.text.clone(), source.read(fields.reader(), &event, node));
    }
    all
}
