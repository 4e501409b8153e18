//! YAML to a tree of positioned nodes: the only place that knows the YAML crate.
//!
//! A tree of our own instead of derived types, because then every key and value has a place, all mistakes can be named
//! and not only the first, and no message is made by somebody who does not know what is secret.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Location, Spanned};
use std::fmt;

use crate::problem::{Position, Problem, Source};

/// The longest policy file: a thousand rules take 100 KiB.
pub(crate) const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Yaml,
}

/// What a value is. Whether a scalar was quoted decides between text and number, as YAML says.
#[derive(Debug)]
pub(crate) enum Yaml {
    Bool(bool),
    Int(u64),
    List(Vec<Node>),
    Map(Vec<(Text, Node)>),
    Null,
    /// A negative number or a fraction, in JSON's spelling: only the parameters of a test may be one.
    Odd(String),
    Text(String),
}

/// A text and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) at: Position,
    pub(crate) text: String,
}

/// Reads a file into a tree.
pub(crate) fn read(source: &Source, text: &str) -> Result<Node, Problem> {
    if text.len() > FILE_BYTES_MAX {
        return Err(source.problem(Position::default(), "the file is longer than 4 MiB"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_anchors: 0,
            max_aliases: 0,
            max_depth: 32,
            max_nodes: 500_000,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        no_schema: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().map_or(Position::default(), position);
        if source.is_secret(at) {
            return source.problem(at, "cannot be read (the line may hold a secret and is not shown)");
        }
        source.problem(at, message(&error))
    })
}

fn position(location: Location) -> Position {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(location.line()), column: number(location.column()) }
}

/// The YAML reader's message without the place, which stands in front of ours, and without advice about its options.
fn message(error: &Error) -> String {
    let error = error.without_snippet();
    if let Error::DuplicateMappingKey { key, .. } = error {
        return format!("the key `{}` is there twice", key.as_deref().unwrap_or("?"));
    }
    if let Error::MergeKeyNotAllowed { .. } = error {
        return "merge keys (`<<`) are not allowed".to_owned();
    }
    if let Error::Budget { breach, .. } = error {
        let is_anchor = matches!(breach, BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. });
        let what =
            if is_anchor { "anchors and aliases are not allowed" } else { "nested too deep, or too large" };
        return what.to_owned();
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let plain = first.rfind(" at line ").and_then(|at| first.get(..at)).unwrap_or(first);
    plain.trim_end_matches([':', ' ']).to_owned()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Yaml>::deserialize(deserializer)?;
        Ok(Self { at: position(spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(Yaml::Int(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(u64::try_from(value).map_or_else(|_| Yaml::Odd(value.to_string()), Yaml::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        Ok(Yaml::Odd(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Yaml, E> {
        Ok(Yaml::Odd(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Yaml, E> {
        Ok(Yaml::Odd(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
        Yaml::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = seq.next_element()? {
            list.push(node);
        }
        Ok(Yaml::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let key = Text { at: position(key.referenced), text: key.value };
            members.push((key, map.next_value()?));
        }
        Ok(Yaml::Map(members))
    }
}
