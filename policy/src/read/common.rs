//! What both kinds of tool have, and what several places need.

use std::sync::Arc;
use std::time::Duration;

use super::fields::{Fields, Reader};
use super::tables::{AUDIT, RATE_LIMIT};
use super::yaml::Text;
use crate::glob::{Glob, GlobError};
use crate::limits::RateLimit;
use crate::patterns::Pattern;
use crate::problem::Position;
use crate::redact::ArgRedaction;
use crate::tool::AuditRules;
use crate::verdict::Rule;

/// The tool being read.
pub(super) struct Context {
    pub(super) tool: Arc<str>,
    pub(super) at: Position,
}

impl Context {
    /// A rule of this tool, by its path in the file.
    pub(super) fn rule(&self, path: &str, line: u32) -> Rule {
        Rule::new(format!("{}: {path}", self.tool), line)
    }
}

/// What both kinds of tool have.
pub(super) struct Common {
    pub(super) audit: AuditRules,
    pub(super) timeout: Duration,
    pub(super) max_concurrent: usize,
    pub(super) rate_limit: Option<(RateLimit, Rule)>,
    pub(super) redact_output: bool,
}

impl Common {
    pub(super) fn read(fields: &mut Fields<'_, '_>, context: &Context, timeout_secs: u64) -> Self {
        let timeout = fields.number("timeout_secs").unwrap_or(timeout_secs);
        let max_concurrent = fields.number("max_concurrent").unwrap_or(16);
        Self {
            timeout: Duration::from_secs(timeout),
            max_concurrent: usize::try_from(max_concurrent).unwrap_or(16),
            rate_limit: rate_limit(fields, context),
            redact_output: fields.bool("redact_output").unwrap_or(true),
            audit: audit(fields),
        }
    }
}

fn rate_limit(fields: &mut Fields<'_, '_>, context: &Context) -> Option<(RateLimit, Rule)> {
    let mut limit = fields.fields("rate_limit", &RATE_LIMIT)?;
    let (at, max, window) = (limit.at, limit.number("max_requests"), limit.number("window_secs"));
    let per_client = limit.choice("per") == Some("client");
    if max.is_none() || window.is_none() {
        limit.reader().error(at, "a rate limit needs `max_requests` and `window_secs`");
    }
    limit.finish();
    let limit = RateLimit { max_requests: max?, window_us: window? * 1_000_000, per_client };
    Some((limit, context.rule("rate_limit", at.line)))
}

fn audit(fields: &mut Fields<'_, '_>) -> AuditRules {
    let mut rules = AuditRules { enabled: true, log_argv: true, log_body: false, redact: Vec::new() };
    let Some(mut audit) = fields.fields("audit", &AUDIT) else { return rules };
    rules.enabled = audit.bool("enabled").unwrap_or(true);
    rules.log_argv = audit.bool("log_argv").unwrap_or(true);
    rules.log_body = audit.bool("log_body").unwrap_or(false);
    for pattern in audit.texts("redact_patterns") {
        match ArgRedaction::new(&pattern.text) {
            Ok(redaction) => rules.redact.push(redaction),
            Err(error) => bad_pattern(audit.reader(), &pattern, &error),
        }
    }
    if !rules.enabled {
        audit.reader().lint(audit.at, "calls of this tool leave no trace in the audit log");
    }
    audit.finish();
    rules
}

pub(super) fn bad_pattern(reader: &Reader<'_>, pattern: &Text, error: &GlobError) {
    reader.error(pattern.at, format!("pattern `{}` {error}", pattern.text));
}

/// A list of patterns under a key, each with its rule `path[n]`.
pub(super) fn patterns<G>(
    fields: &mut Fields<'_, '_>,
    context: &Context,
    key: &'static str,
    path: &str,
    compile: impl Fn(&str) -> Result<G, GlobError>,
) -> Vec<Pattern<G>> {
    let mut patterns = Vec::new();
    for (i, text) in fields.texts(key).into_iter().enumerate() {
        match compile(&text.text) {
            Ok(glob) => {
                let rule = context.rule(&format!("{path}{key}[{i}]"), text.at.line);
                patterns.push(Pattern { glob, rule, looks_like_regex: looks_like_regex(&text.text) });
            }
            Err(error) => bad_pattern(fields.reader(), &text, &error),
        }
    }
    patterns
}

fn looks_like_regex(pattern: &str) -> bool {
    let has = |part: &str| pattern.contains(part);
    pattern.starts_with('^') || pattern.ends_with('$') || [".*", ".+", "\\d", "\\w", "|"].into_iter().any(has)
}

/// A list of globs that are no rules.
pub(super) fn globs(fields: &mut Fields<'_, '_>, key: &'static str) -> Vec<Glob> {
    let texts = fields.texts(key);
    let reader = fields.reader();
    let compile = |text: Text| Glob::new(&text.text).map_err(|error| bad_pattern(reader, &text, &error)).ok();
    texts.into_iter().filter_map(compile).collect()
}

/// An absolute path without `.` and `..`.
pub(super) fn absolute_path(reader: &Reader<'_>, path: &Text) -> bool {
    let is_good = path.text.starts_with('/')
        && !path.text.contains('\0')
        && !path.text.split('/').any(|part| matches!(part, "." | ".."));
    if !is_good {
        reader.error(path.at, "expected an absolute path without `.` and `..`");
    }
    is_good
}
