//! `docs/policy.md` is true: its examples load and pass their tests, its mistakes are found, and no key is left out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail loudly")]

use carapace_policy::{Policy, schema};

const PAGE: &str = include_str!("../../docs/policy.md");

/// Each block of YAML, with what stands behind `yaml` on its first line, and its line in the page.
fn blocks() -> Vec<(String, String, usize)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String, usize)> = None;
    for (i, line) in PAGE.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => open = Some((kind.to_owned(), String::new(), i + 1)),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, text, _)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks.retain(|(kind, _, _)| kind.starts_with("yaml"));
    blocks
}

#[test]
fn every_example_is_true() {
    for (kind, text, line) in blocks() {
        let result = Policy::parse(&format!("docs/policy.md from line {line}"), &text);
        match (kind.strip_prefix("yaml error: "), result) {
            (None, Ok(policy)) => {
                assert!(policy.warnings().is_empty(), "line {line}: {:?}", policy.warnings())
            }
            (None, Err(problems)) => panic!("{problems}"),
            (Some(_), Ok(_)) => panic!("line {line}: no error was found"),
            (Some(wanted), Err(problems)) => assert!(problems.to_string().contains(wanted), "{problems}"),
        }
    }
}

#[test]
fn every_key_has_an_example() {
    let all: String = blocks().into_iter().map(|(_, text, _)| text).collect();
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    for (table, definition) in schema["$defs"].as_object().unwrap() {
        let Some(keys) = definition["properties"].as_object() else { continue };
        for key in keys.keys() {
            let is_shown = [' ', '{', '\n'].iter().any(|before| all.contains(&format!("{before}{key}:")));
            assert!(
                is_shown || all.starts_with(&format!("{key}:")),
                "docs/policy.md shows no `{key}` of {table}"
            );
        }
    }
}
