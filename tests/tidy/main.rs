//! House rules that live in a test and not in wishes. Each failure names the thing to do instead.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's helpers fail by panicking, too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of the repository with one of the endings, as paths from its root.
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let listed = Command::new("git").args(["ls-files"]).current_dir(root()).output().expect("git runs");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
        .map(|name| root().join(name))
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            (name, read(&path))
        })
        .collect()
}

fn sources() -> Vec<(String, String)> {
    files(&[".rs"]).into_iter().filter(|(name, _)| name != "tests/tidy/main.rs").collect()
}

/// The part of a source file in front of its unit tests.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(args).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo speaks UTF-8")
}

/// Direct dependencies at run time, by package, from the manifests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1", "--offline"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("cargo writes JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().expect("dependencies");
            let normal = all.iter().filter(|one| one["kind"].is_null()).map(|one| text(&one["name"]));
            (text(&package["name"]), normal.collect())
        })
        .collect()
}

/// The table of docs/architecture.md: who may use what.
const MAY_USE: [(&str, &[&str]); 5] = [
    ("carapace-policy", &["memchr", "regex-lite", "serde", "serde-saphyr", "serde_json", "sha2"]),
    ("carapace-proto", &["carapace-policy", "httparse", "log", "memchr", "serde", "serde_json", "sha2"]),
    (
        "carapace-io-mio",
        &[
            "carapace-policy",
            "carapace-proto",
            "clap",
            "env_logger",
            "libc",
            "log",
            "mio",
            "nix",
            "serde_json",
            "socket2",
        ],
    ),
    ("carapace-client", &["carapace-proto"]),
    ("carapace-shim", &["carapace-proto", "nix"]),
];

#[test]
fn crates_use_only_what_the_table_allows() {
    let dependencies = dependencies();
    for (package, allowed) in MAY_USE {
        for used in &dependencies[package] {
            assert!(
                allowed.contains(&used.as_str()),
                "{package} uses {used}: give it a line in docs/decisions and in this table, or do without"
            );
        }
    }
}

#[test]
fn the_daemons_have_no_async_runtime_and_no_crate_twice() {
    let tree = cargo(&[
        "tree",
        "-p",
        "carapace-io-mio",
        "-e",
        "normal",
        "--prefix",
        "none",
        "--no-dedupe",
        "--offline",
    ]);
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split(' ');
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            versions.entry(name).or_default().insert(version);
        }
    }
    for runtime in ["tokio", "async-std", "smol", "futures", "futures-core", "async-io", "hyper"] {
        assert!(!versions.contains_key(runtime), "{runtime} is in a daemon's tree");
    }
    for (name, versions) in versions {
        assert_eq!(versions.len(), 1, "{name} is in a daemon's tree in several versions: {versions:?}");
    }
}

#[test]
fn the_pure_crates_stay_pure() {
    let banned = [
        "std::env",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::os::",
        "std::process",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "HashMap",
        "HashSet",
    ];
    for (name, text) in sources() {
        if !name.starts_with("proto/src/") && !name.starts_with("policy/src/") {
            continue;
        }
        for (number, line) in product(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in banned {
                assert!(!code.contains(word), "{name}:{}: {word}: system calls belong to io-mio", number + 1);
            }
        }
    }
    assert_eq!(
        read(&root().join("proto/clippy.toml")),
        read(&root().join("policy/clippy.toml")),
        "the ban lists of the pure crates are one list"
    );
}

#[test]
fn unsafe_code_stays_in_its_one_module() {
    for (name, text) in sources() {
        let is_fenced = name.starts_with("io-mio/src/raw/") || name.starts_with("tests/fuzz/");
        let has_unsafe = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(is_fenced || !has_unsafe, "{name}: unsafe code belongs to io-mio/src/raw");
        let is_crate_root = ["src/lib.rs", "src/main.rs"].iter().any(|root| name.ends_with(root));
        if is_crate_root && !name.starts_with("io-mio/") && !name.starts_with("tests/fuzz/") {
            assert!(text.contains("#![forbid(unsafe_code)]"), "{name}: head it with #![forbid(unsafe_code)]");
        }
    }
}

#[test]
fn nothing_is_left_undone_or_ignored() {
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "TODO", "XXX"] {
                assert!(!line.contains(word), "{name}:{}: {word}", number + 1);
            }
            let is_bare = line.trim() == "#[ignore]";
            assert!(!is_bare, "{name}:{}: say why it is ignored", number + 1);
        }
    }
}

#[test]
fn tests_do_not_sleep() {
    for (name, text) in sources() {
        let is_test = name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("tests.rs");
        let part =
            if is_test { text.as_str() } else { text.strip_prefix(product(&text)).unwrap_or_default() };
        assert!(!part.contains("thread::sleep"), "{name}: wait for the thing itself, not for time");
    }
}

#[test]
fn nothing_speaks_of_one_site_or_one_machine() {
    let seeds =
        ["orca-puffin", "austin", "+12242120288", "/work/main", "/work/wt", "crates.io", "index.crates"];
    for (name, text) in files(&[".rs", ".md", ".toml", ".yaml", ".service", ".sh", "run"]) {
        if name == "tests/tidy/main.rs" || name == "Cargo.lock" {
            continue;
        }
        for word in seeds {
            assert!(!text.contains(word), "{name} says {word}");
        }
    }
}

#[test]
fn every_decision_about_a_dependency_is_written_down() {
    let decisions: String = files(&[".md"])
        .into_iter()
        .filter(|(name, _)| name.starts_with("docs/decisions/"))
        .map(|(_, text)| text)
        .collect();
    for used in dependencies().into_values().flatten() {
        let is_ours = used.starts_with("carapace-");
        assert!(is_ours || decisions.contains(&format!("`{used}`")), "{used} has no line in docs/decisions");
    }
}

#[test]
fn ci_runs_the_readme_s_test_command() {
    let readme = read(&root().join("README.md"));
    let ci = read(&root().join(".ci/run"));
    for command in ["cargo test --workspace", "cargo run --release -p carapace-debug -- demo"] {
        assert!(readme.contains(command), "the README does not say {command}");
        assert!(ci.contains(command), ".ci/run does not run {command}");
    }
}
