//! Tools of `type: cli`.

use std::time::Duration;

use super::common::{Context, SECS_MAX, Secrets, absolute_path, globs, patterns};
use super::fields::Fields;
use super::yaml::Text;
use crate::tool::{CliTool, Pattern, Rlimits};
use crate::words::{AllowWords, DenyWords};

/// Keys that only this kind of tool has.
pub(super) const KEYS: &[&str] = &[
    "binary",
    "argv_allow_patterns",
    "argv_deny_patterns",
    "env_allow",
    "env_inject",
    "cwd",
    "cwd_allowed",
    "stdin",
    "tty",
    "max_output_bytes",
    "kill_grace_secs",
    "limits",
    "run_as",
];

/// 100 MiB: more than a tool prints by intention, and more can be asked for.
const OUTPUT_BYTES_DEFAULT: u64 = 100 * 1024 * 1024;

pub(super) fn read(
    fields: &mut Fields<'_, '_>,
    secrets: &mut Secrets<'_, '_>,
    context: &Context,
) -> Option<CliTool> {
    let binary = fields.text("binary");
    let is_path = binary.as_ref().is_some_and(|binary| absolute_path(fields.reader(), binary));
    if binary.is_none() {
        fields.reader().error(fields.at, format!("tool `{}` needs a `binary`", context.tool));
    }
    let cwd = directory(fields, "cwd");
    let cli = CliTool {
        binary: binary.map(|binary| binary.text).unwrap_or_default(),
        allow: patterns(fields, context, "argv_allow_patterns", "", AllowWords::new),
        deny: deny_patterns(fields, context),
        env_allow: globs(fields, "env_allow"),
        env_inject: env_inject(fields, secrets, context),
        cwd: cwd.unwrap_or_else(|| "/".to_owned()),
        cwd_allowed: cwd_allowed(fields),
        stdin: fields.bool("stdin").unwrap_or(false),
        tty: fields.bool("tty").unwrap_or(false),
        kill_grace: Duration::from_secs(fields.number("kill_grace_secs", 0, 600).unwrap_or(2)),
        max_output_bytes: fields.number("max_output_bytes", 1, u64::MAX).unwrap_or(OUTPUT_BYTES_DEFAULT),
        limits: limits(fields),
        run_as: fields.text("run_as").map(|user| user.text),
    };
    if cli.allow.is_empty() {
        fields
            .reader()
            .warn(fields.at, format!("tool `{}` allows no arguments: every run is denied", context.tool));
    }
    is_path.then_some(cli)
}

fn deny_patterns(fields: &mut Fields<'_, '_>, context: &Context) -> Vec<Pattern<DenyWords>> {
    let all = patterns(fields, context, "argv_deny_patterns", "", DenyWords::new);
    let mut some = Vec::new();
    for Pattern { glob, rule } in all {
        match glob {
            Some(glob) => some.push(Pattern { glob, rule }),
            None => fields.reader().error(fields.at, format!("`{}` holds an empty pattern", rule.text())),
        }
    }
    some
}

fn env_inject(
    fields: &mut Fields<'_, '_>,
    secrets: &mut Secrets<'_, '_>,
    context: &Context,
) -> Vec<(std::sync::Arc<str>, crate::secret::SecretId)> {
    let Some((_, node)) = fields.take("env_inject") else { return Vec::new() };
    let mut injected = Vec::new();
    for (name, node) in fields.reader().entries(node) {
        if !is_variable(&name) {
            fields.reader().error(name.at, "this is no name for an environment variable");
        } else if let Some(id) = secrets.read(context, &name, node, false) {
            injected.push((name.text.as_str().into(), id));
        }
    }
    injected
}

fn is_variable(name: &Text) -> bool {
    let is_plain = |c: char| c.is_ascii_graphic() && c != '=';
    !name.text.is_empty() && name.text.chars().all(is_plain) && name.text != "_CARAPACE_JOB"
}

fn directory(fields: &mut Fields<'_, '_>, key: &'static str) -> Option<String> {
    let path = fields.text(key)?;
    absolute_path(fields.reader(), &path).then_some(path.text)
}

fn cwd_allowed(fields: &mut Fields<'_, '_>) -> Option<Vec<String>> {
    let (_, node) = fields.take("cwd_allowed")?;
    let reader = fields.reader();
    let paths = reader.texts(node).into_iter().filter(|path| absolute_path(reader, path));
    Some(paths.map(|path| path.text).collect())
}

fn limits(fields: &mut Fields<'_, '_>) -> Rlimits {
    let Some(mut limits) = fields.fields("limits") else { return Rlimits::default() };
    let rlimits = Rlimits {
        cpu_secs: limits.number("cpu_secs", 1, SECS_MAX),
        memory_bytes: limits.number("memory_bytes", 1024 * 1024, u64::MAX),
        open_files: limits.number("open_files", 3, 1 << 20),
        processes: limits.number("processes", 1, 1 << 22),
    };
    limits.finish();
    rlimits
}
