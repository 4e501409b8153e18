//! `jsonrpc_param_filters` and `event_filters`: the same shape over different things.

use std::sync::Arc;

use super::common::{Context, patterns};
use super::fields::Reader;
use super::tables::FILTER;
use super::yaml::{Node, Text, Yaml};
use crate::glob::Glob;
use crate::judge::{PATH_DEPTH_MAX, default_audit_name};
use crate::patterns::Patterns;
use crate::profile::{JSON_RPC, Profile};
use crate::tool::{FieldPath, Filter};

/// Where filters come from.
pub(super) struct FilterSource<'a> {
    pub(super) context: &'a Context,
    pub(super) profile: Option<&'static Profile>,
    /// The key they stand under.
    pub(super) key: &'static str,
    /// Events come from the upstream: nobody has to keep their values from being normalised.
    pub(super) is_event: bool,
}

impl FilterSource<'_> {
    /// One filter or a list of filters.
    pub(super) fn read(&self, reader: &Reader<'_>, method: &Text, node: Node) -> Vec<Filter> {
        let path = format!("{}.{}", self.key, method.text);
        match node.value {
            Yaml::List(list) => {
                let read = |(i, node)| self.filter(reader, &format!("{path}[{i}]"), node);
                list.into_iter().enumerate().filter_map(read).collect()
            }
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd(_) | Yaml::Text(_) => {
                self.filter(reader, &path, node).into_iter().collect()
            }
        }
    }

    fn filter(&self, reader: &Reader<'_>, path: &str, node: Node) -> Option<Filter> {
        let mut fields = reader.fields(node, &FILTER);
        let at = fields.at;
        let mut names = fields.texts("fields");
        if let Some(name) = fields.text("field") {
            if !names.is_empty() {
                reader.error(name.at, "a filter has `field` or `fields`, not both");
            }
            names.push(name);
        }
        let below = format!("{path}.");
        let allow = Patterns::new(patterns(&mut fields, self.context, "allow_patterns", &below, Glob::new));
        let deny = Patterns::new(patterns(&mut fields, self.context, "deny_patterns", &below, Glob::new));
        let is_required = fields.bool("required").unwrap_or(true);
        let audit_as = fields.text("audit_as").map(|name| Arc::from(name.text));
        fields.finish();
        let Some(first) = names.first() else {
            reader.error(at, "a filter needs `field` or `fields`");
            return None;
        };
        if allow.is_empty() {
            reader.warn(at, "the filter has no allow_patterns: it denies every value");
        }
        let label = first.text.clone();
        let paths: Vec<_> = names.iter().filter_map(|name| self.field_path(reader, name)).collect();
        let destination = match paths.first().map(|path| path.0.as_slice()) {
            Some([folded]) if !self.is_event => self.profile.and_then(|profile| profile.destination(folded)),
            _ => None,
        };
        let folded = destination.map(|destination| destination.name);
        Some(Filter {
            fields: paths,
            label,
            allow,
            deny,
            is_required,
            audit_as: audit_as.or_else(|| default_audit_name(self.profile, folded?)),
            format: destination.map(|destination| destination.format),
            noun: destination.map_or("value", |destination| destination.noun),
            rule: self.context.rule(path, at.line),
        })
    }

    fn field_path(&self, reader: &Reader<'_>, name: &Text) -> Option<FieldPath> {
        let profile = self.profile.unwrap_or(&JSON_RPC);
        let parts: Vec<_> = name.text.split('.').map(|part| profile.fold(part)).collect();
        if parts.iter().any(String::is_empty) || parts.len() > PATH_DEPTH_MAX {
            reader.error(name.at, format!("`{}` is no path of one to 8 names", name.text));
            return None;
        }
        Some(FieldPath(parts))
    }
}
