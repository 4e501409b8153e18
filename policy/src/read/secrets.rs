//! `env_inject` and `headers_inject`.

use super::common::{Context, absolute_path};
use super::fields::{Fields, Reader};
use super::tables::SECRET;
use super::yaml::{Node, Text, Yaml};
use crate::policy::{REDACTABLE_BYTES_MIN, TOO_SHORT, check_value};
use crate::problem::Position;
use crate::secret::{Secret, SecretId, SecretPlace, SecretSource, Vault};

/// Gathers the secrets of all tools.
pub(super) struct Secrets<'r, 'a> {
    reader: &'r Reader<'a>,
    sources: Vec<SecretSource>,
    vault: Vault,
}

/// Where a value goes, which decides what it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Header,
    Variable,
}

/// One value being read.
struct Slot<'t> {
    id: SecretId,
    name: &'t Text,
    at: Position,
    target: Target,
}

impl<'r, 'a> Secrets<'r, 'a> {
    pub(super) fn new(reader: &'r Reader<'a>) -> Self {
        Self { reader, sources: Vec::new(), vault: Vault::default() }
    }

    pub(super) fn finish(self) -> (Vec<SecretSource>, Vault) {
        (self.sources, self.vault)
    }

    /// One injected value: text, or where it is found and what stands before it.
    pub(super) fn read(
        &mut self,
        context: &Context,
        name: &Text,
        node: Node,
        target: Target,
    ) -> Option<SecretId> {
        let slot = Slot { id: self.vault.reserve(), name, at: node.at, target };
        let (place, prefix) = match node.value {
            Yaml::Text(literal) => {
                if let Some(short) = self.literal(&slot, "", &literal) {
                    // Plain text is a setting more often than a secret.
                    self.reader.lint(slot.at, short);
                }
                return Some(slot.id);
            }
            Yaml::Map(_) => self.place(&slot, node)?,
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::List(_) | Yaml::Null | Yaml::Odd(_) => {
                let wanted = "expected text in quotes, or one of file, env, credential, command";
                self.reader.error(slot.at, format!("`{}`: {wanted}", name.text));
                return None;
            }
        };
        if let Some(place) = place {
            self.sources.push(SecretSource {
                id: slot.id,
                tool: context.tool.clone(),
                name: name.text.as_str().into(),
                place,
                prefix: prefix.as_str().into(),
                problem: self.reader.place(slot.at),
            });
        }
        Some(slot.id)
    }

    /// Takes a value that stands in the file; what to say if it is too short to be found in output.
    fn literal(&mut self, slot: &Slot<'_>, prefix: &str, literal: &str) -> Option<String> {
        if let Err(what) = check_value(literal.as_bytes(), slot.target == Target::Header) {
            self.reader.error(slot.at, format!("the value of `{}` {what}", slot.name.text));
        }
        self.vault.put(slot.id, prefix, Secret::new(literal.as_bytes()));
        let is_short = literal.len() < REDACTABLE_BYTES_MIN;
        is_short.then(|| format!("the value of `{}` {TOO_SHORT}", slot.name.text))
    }

    /// The place a mapping names, and the prefix; no place where it held a literal.
    fn place(&mut self, slot: &Slot<'_>, node: Node) -> Option<(Option<SecretPlace>, String)> {
        let (reader, name) = (self.reader, &slot.name.text);
        let mut fields = reader.fields(node, &SECRET);
        let prefix = fields.text("prefix").map(|prefix| prefix.text).unwrap_or_default();
        if !prefix.is_empty() && check_value(prefix.as_bytes(), slot.target == Target::Header).is_err() {
            reader.error(slot.at, format!("the prefix of `{name}` cannot stand there"));
        }
        let mut places: Vec<_> = places(reader, &mut fields, slot.at).into_iter().map(Some).collect();
        if let Some(literal) = fields.text("literal") {
            if let Some(short) = self.literal(slot, &prefix, &literal.text) {
                reader.warn(slot.at, short);
            }
            places.push(None);
        }
        fields.finish();
        if places.len() != 1 {
            let wanted = "needs exactly one of literal, file, env, credential, command";
            reader.error(slot.at, format!("`{name}` {wanted}"));
        }
        places.pop().map(|place| (place, prefix))
    }
}

/// Every place that is named; there should be one.
fn places(reader: &Reader<'_>, fields: &mut Fields<'_, '_>, at: Position) -> Vec<SecretPlace> {
    let mut places = Vec::new();
    if let Some(path) = fields.text("file") {
        absolute_path(reader, &path);
        places.push(SecretPlace::File(path.text));
    }
    places.extend(fields.text("env").map(|env| SecretPlace::Env(env.text)));
    if let Some(credential) = fields.text("credential") {
        if credential.text.contains('/') || matches!(credential.text.as_str(), "" | "." | "..") {
            reader.error(credential.at, "a credential's name holds no `/`");
        }
        places.push(SecretPlace::Credential(credential.text));
    }
    let cache_secs = fields.number("cache_secs");
    if let Some((at, node)) = fields.take("command") {
        let argv = reader.texts(node);
        match argv.first() {
            Some(program) => {
                absolute_path(reader, program);
            }
            None => reader.error(at, "expected a program and its arguments"),
        }
        let argv = argv.into_iter().map(|arg| arg.text).collect();
        places.push(SecretPlace::Command { argv, cache_secs: cache_secs.unwrap_or(300) });
    } else if cache_secs.is_some() {
        reader.error(at, "`cache_secs` belongs to `command`");
    }
    places
}
