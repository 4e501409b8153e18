//! From the text of a policy file to a policy.

mod cli;
mod clients;
mod common;
mod fields;
mod http;
mod yaml;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::policy::Policy;
use crate::problem::{Problems, Source};
use crate::secret::{SecretSource, Vault};
use common::{Common, Secrets};
use fields::{Fields, Reader};
use yaml::{Node, Text};

use crate::tool::{Kind, Tool};

impl Policy {
    /// Reads a policy file. Pure: text in, policy or problems out. `file` is only a name for messages.
    ///
    /// # Errors
    /// The first mistake of shape (what is no YAML, or has a key twice), or else every mistake of meaning.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let source = Source::new(file, text);
        let root = yaml::read(&source, text).map_err(|problem| Problems(vec![problem]))?;
        let reader = Reader::new(&source);
        let mut policy = read_root(&reader, root);
        policy.version = version(text);
        let (errors, warnings) = reader.finish();
        if !errors.is_empty() {
            return Err(Problems(errors));
        }
        policy.warnings = warnings;
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
    let mut fields = reader.fields(root);
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
    fields.finish();
    let (sources, vault): (Vec<SecretSource>, Vault) = secrets.finish();
    Policy { tools, clients, secrets: sources.into(), vault, ..Policy::deny_all() }
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
    let mut fields = reader.fields(node);
    let kind = fields.text("type");
    let context = common::Context { tool: name.text.as_str().into(), line: name.at.line };
    let tool = match kind.as_ref().map(|kind| kind.text.as_str()) {
        Some("http") => {
            let common = Common::read(&mut fields, &context, 30);
            http::read(&mut fields, secrets, &context).map(|http| (common, Kind::Http(Box::new(http))))
        }
        Some("cli") => {
            let common = Common::read(&mut fields, &context, 300);
            cli::read(&mut fields, secrets, &context).map(|cli| (common, Kind::Cli(Box::new(cli))))
        }
        Some(_) | None => {
            let at = kind.as_ref().map_or(name.at, |kind| kind.at);
            reader.error(at, format!("tool `{}` needs a `type`: http or cli", name.text));
            return None;
        }
    };
    report_other_kind(&fields, kind.as_ref());
    fields.finish();
    let (common, kind) = tool?;
    Some(Tool {
        name: context.tool,
        kind,
        audit: common.audit,
        timeout: common.timeout,
        max_concurrent: common.max_concurrent,
        rate_limit: common.rate_limit,
        redact_output: common.redact_output,
        place: reader.place(name.at),
    })
}

/// A key of the other kind of tool is a mistake worth a better word than "unknown".
fn report_other_kind(fields: &Fields<'_, '_>, kind: Option<&Text>) {
    let Some(kind) = kind else { return };
    let (other, keys): (&str, &[&str]) =
        if kind.text == "http" { ("cli", cli::KEYS) } else { ("http", http::KEYS) };
    for key in keys.iter().filter(|key| fields.has(key)) {
        fields.reader().error(kind.at, format!("`{key}` belongs to tools of type {other}"));
    }
}
