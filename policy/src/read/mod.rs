//! From the text of a policy file to a policy.

mod ask;
mod cli;
mod clients;
mod common;
mod content;
mod fields;
mod filters;
mod http;
mod lint;
mod schema;
mod secrets;
mod tables;
mod yaml;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::policy::Policy;
use crate::problem::{Problems, Source};
use crate::secret::{SecretSource, Vault};
use common::{Common, Context};
use fields::Reader;
use secrets::Secrets;
use tables::{CLI, HTTP, ROOT};
use yaml::{Node, Text, Yaml};

use crate::tool::{Kind, Tool};

pub use ask::{Explained, Outcome};
pub use schema::schema;

impl Policy {
    /// Reads a policy file and runs its tests. Pure: text in, policy or problems out. `file` is only a name for messages.
    ///
    /// # Errors
    /// The first mistake of shape (what is no YAML, or has a key twice), or else every mistake of meaning, or else every
    /// test that failed.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let source = Source::new(file, text);
        let root = yaml::read(&source, text).map_err(|problem| Problems(vec![problem]))?;
        let reader = Reader::new(&source);
        let mut policy = read_root(&reader, root);
        policy.version = version(text);
        let findings = reader.finish();
        if !findings.errors.is_empty() {
            return Err(Problems(findings.errors));
        }
        policy.warnings = findings.warnings;
        policy.lints = findings.lints;
        Ok(policy)
    }
}

fn version(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).fold(String::new(), |mut hex, byte| {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn read_root(reader: &Reader<'_>, root: Node) -> Policy {
    let mut fields = reader.fields(root, &ROOT);
    let mut secrets = Secrets::new(reader);
    let mut tools = BTreeMap::new();
    match fields.take("tools") {
        Some((_, node)) => {
            for (name, node) in reader.entries(node) {
                if let Some(tool) = read_tool(reader, &mut secrets, &name, node) {
                    tools.insert(tool.name.clone(), Arc::new(tool));
                }
            }
        }
        None => reader.warn(fields.at, "there are no `tools`: everything is denied"),
    }
    let clients = fields.take("clients").map(|(_, node)| clients::read(reader, node, &tools).into());
    let content = fields.take("content_filters").map(|(_, node)| content::read(reader, node));
    let tests = fields.take("tests").map(|(_, node)| reader.list(node)).unwrap_or_default();
    fields.finish();
    let (sources, vault): (Vec<SecretSource>, Vault) = secrets.finish();
    let content = content.unwrap_or_else(|| Arc::new([]));
    let policy = Policy { tools, clients, secrets: sources.into(), vault, content, ..Policy::deny_all() };
    // A policy that is wrong in itself would fail its tests for reasons that have been named already.
    if !reader.has_errors() {
        ask::run_tests(reader, &policy, tests);
    }
    policy
}

/// The most characters of a tool's name: it is a file name on the VM and a word in records.
const TOOL_NAME_MAX: usize = 64;

fn read_tool(reader: &Reader<'_>, secrets: &mut Secrets<'_, '_>, name: &Text, node: Node) -> Option<Tool> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    let is_name =
        !name.text.is_empty() && name.text.chars().all(is_word) && !name.text.starts_with(['-', '.']);
    if !is_name || name.text.len() > TOOL_NAME_MAX {
        reader.error(name.at, "a tool's name is up to 64 letters, digits, `-`, `_`, `.` or `+`");
    }
    let is_http = match kind_of(&node) {
        Some("http") => true,
        Some("cli") => false,
        Some(_) | None => {
            reader.error(name.at, format!("tool `{}` needs a `type`: http or cli", name.text));
            return None;
        }
    };
    let context = Context { tool: name.text.as_str().into(), at: name.at };
    let (table, other, place) =
        if is_http { (&HTTP, &CLI, "tools of type cli") } else { (&CLI, &HTTP, "tools of type http") };
    let mut fields = reader.fields(node, table);
    fields.take("type");
    let common = Common::read(&mut fields, &context, if is_http { 30 } else { 300 });
    let kind = if is_http {
        http::read(&mut fields, secrets, &context).map(|http| Kind::Http(Box::new(http)))
    } else {
        cli::read(&mut fields, secrets, &context).map(|cli| Kind::Cli(Box::new(cli)))
    };
    fields.finish_beside(other, place);
    let tool = Tool {
        name: context.tool,
        kind: kind?,
        audit: common.audit,
        timeout: common.timeout,
        max_concurrent: common.max_concurrent,
        rate_limit: common.rate_limit,
        redact_output: common.redact_output,
        place: reader.place(name.at),
    };
    lint::tool(reader, &tool, name.at);
    Some(tool)
}

/// A tool's `type`, which decides what its other keys may be.
fn kind_of(node: &Node) -> Option<&str> {
    let Yaml::Map(members) = &node.value else { return None };
    match &members.iter().find(|(key, _)| key.text == "type")?.1.value {
        Yaml::Text(kind) => Some(kind),
        Yaml::Bool(_) | Yaml::Int(_) | Yaml::List(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd(_) => None,
    }
}
