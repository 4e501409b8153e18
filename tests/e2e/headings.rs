//! That the headings of these tests quote what stands in the documents.

use std::fs;
use std::path::Path;

/// Text with all white space alike, so that where its lines end does not matter.
fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The headings of a file's tests, each with the test's name.
fn headings(source: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut heading = String::new();
    let mut is_test = false;
    for line in source.lines() {
        if let Some(text) = line.strip_prefix("/// ") {
            heading.push_str(text);
            heading.push(' ');
        } else if line == "#[test]" {
            is_test = true;
        } else {
            if is_test && let Some(rest) = line.strip_prefix("fn ") {
                let name = rest.split('(').next().unwrap_or_default().to_owned();
                found.push((name, joined(&heading)));
            }
            heading.clear();
            is_test = false;
        }
    }
    found
}

/// Every test is headed by what it proves; what is quoted from a document stands there, in these words.
#[test]
fn headings_quote_the_documents() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut quotes = 0;
    for file in fs::read_dir(root.join("tests/e2e")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        for (test, heading) in headings(&fs::read_to_string(&path).unwrap()) {
            assert!(!heading.is_empty(), "{test}: head it with the sentence that it proves");
            for part in heading.split("docs/").skip(1) {
                let (document, rest) = part.split_once(": ").unwrap_or((part, ""));
                let text = joined(&fs::read_to_string(root.join("docs").join(document)).unwrap());
                // Up to the next document; the guide is not one of this repository.
                let rest = rest.split("guide: ").next().unwrap_or_default();
                for quote in rest.split('"').skip(1).step_by(2) {
                    quotes += 1;
                    assert!(text.contains(quote), "{test}: docs/{document} does not say {quote:?}");
                }
            }
        }
    }
    assert!(quotes > 100, "{quotes} quotes");
}
