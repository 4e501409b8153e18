//! The policies that people start from load without a warning and pass their own tests; the schema is current.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

use std::path::Path;

use carapace_policy::{Policy, schema};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

#[test]
fn every_example_is_good() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let policy = Policy::parse(name, &text).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(policy.warnings().is_empty(), "{name}: {:?}", policy.warnings());
        assert!(text.contains("\ntests:\n"), "{name} has no tests");
        count += 1;
    }
    assert!(count >= 5);
}

#[test]
fn the_schema_is_current() {
    let committed = std::fs::read_to_string(folder().join("policy.schema.json")).unwrap();
    let command = "cargo run -p carapace-policy --example schema > examples/policy.schema.json";
    assert_eq!(committed, schema(), "the schema has changed; write it anew: {command}");
    let value: serde_json::Value = serde_json::from_str(&committed).unwrap();
    let definitions = value["$defs"].as_object().unwrap();
    for part in committed.split("\"#/$defs/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(definitions.contains_key(name), "{name} is referred to and not there");
    }
}
