//! The JSON schema of a policy file, for editors.

use std::collections::BTreeMap;

use super::tables::{CLI, HTTP, ROOT, Shape, Table};
use crate::json::escape;

/// The JSON schema (2020-12) of a policy file: keys, types, ranges and what they mean. A file that fits it may still be
/// refused: patterns are not compiled by it.
#[must_use]
pub fn schema() -> String {
    let mut tables = BTreeMap::new();
    for table in [&ROOT, &HTTP, &CLI] {
        collect(&mut tables, table);
    }
    let mut out = b"{\n".to_vec();
    out.extend_from_slice(b"  \"$schema\": \"https://json-schema.org/draft/2020-12/schema\",\n");
    out.extend_from_slice(
        b"  \"title\": \"Carapace policy\",\n  \"$ref\": \"#/$defs/policy\",\n  \"$defs\": {\n",
    );
    for table in tables.values() {
        write_table(&mut out, table);
    }
    out.extend_from_slice(br##"    "tool": { "if": { "properties": { "type": { "const": "cli" } } }, "##);
    out.extend_from_slice(
        br##""then": { "$ref": "#/$defs/cli_tool" }, "else": { "$ref": "#/$defs/http_tool" } }"##,
    );
    out.extend_from_slice(b"\n  }\n}\n");
    String::from_utf8_lossy(&out).into_owned()
}

fn collect(tables: &mut BTreeMap<&'static str, &'static Table>, table: &'static Table) {
    if tables.insert(table.name, table).is_none() {
        table.keys().for_each(|key| collect_shape(tables, &key.shape));
    }
}

fn collect_shape(tables: &mut BTreeMap<&'static str, &'static Table>, shape: &Shape) {
    match shape {
        Shape::Fields(table) | Shape::List(table) => collect(tables, table),
        Shape::Map(inner) => collect_shape(tables, inner),
        Shape::Or(a, b) => {
            collect_shape(tables, a);
            collect_shape(tables, b);
        }
        Shape::Any | Shape::Bool | Shape::Choice(_) | Shape::Number { .. } | Shape::Text | Shape::Texts => {}
    }
}

fn write_table(out: &mut Vec<u8>, table: &Table) {
    out.extend_from_slice(b"    ");
    escape(out, table.name);
    out.extend_from_slice(b": {\n      \"type\": \"object\",\n      \"additionalProperties\": false,\n");
    out.extend_from_slice(b"      \"properties\": {\n");
    for (i, key) in table.keys().enumerate() {
        if i > 0 {
            out.extend_from_slice(b",\n");
        }
        out.extend_from_slice(b"        ");
        escape(out, key.name);
        out.extend_from_slice(b": { \"description\": ");
        escape(out, key.help);
        out.extend_from_slice(b", ");
        let is_tools = table.name == ROOT.name && key.name == "tools";
        if is_tools {
            out.extend_from_slice(
                br##""type": "object", "additionalProperties": { "$ref": "#/$defs/tool" }"##,
            );
        } else {
            write_shape(out, &key.shape);
        }
        out.extend_from_slice(b" }");
    }
    out.extend_from_slice(b"\n      }\n    },\n");
}

/// The members of the schema object of a shape.
fn write_shape(out: &mut Vec<u8>, shape: &Shape) {
    let mut text = |text: &str| out.extend_from_slice(text.as_bytes());
    match shape {
        Shape::Any => text("\"$comment\": \"anything\""),
        Shape::Bool => text("\"type\": \"boolean\""),
        Shape::Text => text("\"type\": \"string\""),
        Shape::Texts => text("\"type\": \"array\", \"items\": { \"type\": \"string\" }"),
        Shape::Number { min, max: u64::MAX } => text(&format!("\"type\": \"integer\", \"minimum\": {min}")),
        Shape::Number { min, max } => {
            text(&format!("\"type\": \"integer\", \"minimum\": {min}, \"maximum\": {max}"));
        }
        Shape::Choice(choices) => text(&format!("\"enum\": {choices:?}")),
        Shape::Fields(table) => text(&format!("\"$ref\": \"#/$defs/{}\"", table.name)),
        Shape::List(table) => {
            text(&format!("\"type\": \"array\", \"items\": {{ \"$ref\": \"#/$defs/{}\" }}", table.name));
        }
        Shape::Map(inner) => {
            text("\"type\": \"object\", \"additionalProperties\": { ");
            write_shape(out, inner);
            out.extend_from_slice(b" }");
        }
        Shape::Or(a, b) => {
            text("\"anyOf\": [{ ");
            write_shape(out, a);
            out.extend_from_slice(b" }, { ");
            write_shape(out, b);
            out.extend_from_slice(b" }]");
        }
    }
}
