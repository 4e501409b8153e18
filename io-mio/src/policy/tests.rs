use super::*;
use std::fs::Permissions;

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn load(&self, text: &str) -> Result<Policy, LoadError> {
        PolicyFile::new(self.write("policy.yaml", text, 0o600)).load()
    }
}

fn tool(binary: &Path, more: &str) -> String {
    format!(
        "tools:\n  it:\n    type: cli\n    binary: {}\n    argv_allow_patterns: [\"**\"]\n{more}",
        binary.display()
    )
}

#[test]
fn a_policy_that_others_may_write_is_refused() {
    let scene = Scene::new();
    for (mode, is_fine) in [(0o600, true), (0o644, true), (0o646, false)] {
        let path = scene.write("policy.yaml", "tools: {}\n", mode);
        let loaded = PolicyFile::new(path).load();
        assert_eq!(loaded.is_ok(), is_fine, "{mode:o}: {loaded:?}");
    }
}

#[test]
fn a_policy_that_is_missing_or_no_text_is_named() {
    let scene = Scene::new();
    let missing = PolicyFile::new("/nonexistent/policy.yaml".into()).load().unwrap_err();
    assert!(missing.to_string().starts_with("/nonexistent/policy.yaml: No such file"), "{missing}");
    let folder = PolicyFile::new(scene.dir.path().into()).load().unwrap_err();
    assert!(folder.to_string().ends_with(": it is not a plain file"), "{folder}");
    let binary = PolicyFile::new(scene.write("p", [0xff, 0xfe], 0o600)).load().unwrap_err();
    assert!(binary.to_string().ends_with(": it is not UTF-8"), "{binary}");
}

#[test]
fn a_mistake_is_shown_where_it_is_and_ends_with_78() {
    let scene = Scene::new();
    let mistaken = tool(Path::new("/bin/true"), "    stdn: true\n");
    let fatal = Fatal::from(scene.load(&mistaken).unwrap_err());
    assert_eq!(fatal.exit, Exit::Config);
    assert!(fatal.message.contains("policy.yaml:6:5: "), "{}", fatal.message);
    assert!(fatal.message.contains("6 |     stdn: true"), "{}", fatal.message);
}

#[test]
fn a_program_that_others_may_write_is_an_error_and_one_that_is_missing_is_not() {
    let scene = Scene::new();
    scene.load(&tool(&scene.write("fine", "", 0o755), "")).unwrap();
    scene.load(&tool(Path::new("/nonexistent/program"), "")).unwrap();
    let error = scene.load(&tool(&scene.write("open", "", 0o757), "")).unwrap_err();
    assert!(error.to_string().contains(": tool `it`: everybody may write /"), "{error}");
}

#[test]
fn secrets_are_fetched_from_where_they_are() {
    let scene = Scene::new();
    let file = scene.write("token", "hunter2-from-file\n", 0o600);
    let more = format!(
        "    env_inject:\n      A: {{ file: {} }}\n      B: {{ command: [/bin/echo, hunter2-from-echo] }}\n      C: {{ env: PATH }}\n",
        file.display()
    );
    let policy = scene.load(&tool(Path::new("/bin/true"), &more)).unwrap();
    let exec = crate::tests::judge(&policy, "it", &[]);
    let env: Vec<_> = exec.env().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    let path = std::env::var("PATH").unwrap().into_bytes();
    let expected = [
        (b"A".to_vec(), b"hunter2-from-file".to_vec()),
        (b"B".to_vec(), b"hunter2-from-echo".to_vec()),
        (b"C".to_vec(), path),
    ];
    assert_eq!(env, expected);
}

#[test]
fn a_secret_that_is_not_there_closes_its_tool_and_nothing_else() {
    let scene = Scene::new();
    let more = "    env_inject:\n      A: { file: /nonexistent/token }\n  other: { type: cli, binary: /bin/true, argv_allow_patterns: [\"**\"] }\n";
    let policy = scene.load(&tool(Path::new("/bin/true"), more)).unwrap();
    assert!(crate::tests::try_judge(&policy, "it", &[]).is_err());
    assert!(crate::tests::try_judge(&policy, "other", &[]).is_ok());
}
