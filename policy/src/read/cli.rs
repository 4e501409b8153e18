//! Tools of `type: cli`.

use std::time::Duration;

use super::common::{Context, absolute_path, bad_pattern, globs, patterns};
use super::fields::{Fields, Reader};
use super::secrets::{Secrets, Target};
use super::tables::{COMMAND, FLAG, LIMITS};
use super::yaml::{Node, Text, Yaml};
use crate::commands::{Command, Flag, FlagValue};
use crate::glob::Glob;
use crate::patterns::Pattern;
use crate::tool::{CliTool, Rlimits};
use crate::words::{AllowWords, DenyWords};

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
        commands: commands(fields, context),
        env_allow: globs(fields, "env_allow"),
        env_inject: env_inject(fields, secrets, context),
        cwd: cwd.unwrap_or_else(|| "/".to_owned()),
        cwd_allowed: cwd_allowed(fields),
        stdin: fields.bool("stdin").unwrap_or(false),
        tty: fields.bool("tty").unwrap_or(false),
        kill_grace: Duration::from_secs(fields.number("kill_grace_secs").unwrap_or(2)),
        max_output_bytes: fields.number("max_output_bytes").unwrap_or(OUTPUT_BYTES_DEFAULT),
        limits: limits(fields),
        run_as: fields.text("run_as").map(|user| user.text),
    };
    if cli.allow.is_empty() && cli.commands.is_empty() {
        fields
            .reader()
            .warn(fields.at, format!("tool `{}` allows no arguments: every run is denied", context.tool));
    }
    is_path.then_some(cli)
}

fn deny_patterns(fields: &mut Fields<'_, '_>, context: &Context) -> Vec<Pattern<DenyWords>> {
    let all = patterns(fields, context, "argv_deny_patterns", "", DenyWords::new);
    let mut some = Vec::new();
    for Pattern { glob, rule, looks_like_regex } in all {
        match glob {
            Some(glob) => some.push(Pattern { glob, rule, looks_like_regex }),
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
    let mut injected = Vec::new();
    for (name, node) in fields.entries("env_inject") {
        if !is_variable(&name) {
            fields.reader().error(name.at, "this is no name for an environment variable");
        } else if let Some(id) = secrets.read(context, &name, node, Target::Variable) {
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
    let Some(mut limits) = fields.fields("limits", &LIMITS) else { return Rlimits::default() };
    let rlimits = Rlimits {
        cpu_secs: limits.number("cpu_secs"),
        memory_bytes: limits.number("memory_bytes"),
        open_files: limits.number("open_files"),
        processes: limits.number("processes"),
    };
    limits.finish();
    rlimits
}

fn commands(fields: &mut Fields<'_, '_>, context: &Context) -> Vec<Command> {
    let reader = fields.reader();
    let mut commands: Vec<Command> = Vec::new();
    for (path, node) in fields.entries("commands") {
        let words: Vec<_> = path.text.split_ascii_whitespace().map(str::to_owned).collect();
        if words.iter().any(|word| word.starts_with('-')) {
            reader.error(path.at, "a subcommand is words, not flags");
        }
        if commands.iter().any(|known| known.path == words) {
            reader.error(path.at, format!("the command `{}` is there twice", path.text));
        }
        commands.push(command(reader, context, words, &path, node));
    }
    commands
}

fn command(reader: &Reader<'_>, context: &Context, words: Vec<String>, path: &Text, node: Node) -> Command {
    let mut fields = reader.fields(node, &COMMAND);
    let mut flags: Vec<Flag> = Vec::new();
    for (names, node) in fields.entries("flags") {
        let flag = flag(reader, &names, node);
        if flags.iter().any(|known| known.names.iter().any(|name| flag.names.contains(name))) {
            reader.error(names.at, format!("`{}` repeats a flag", names.text));
        }
        flags.push(flag);
    }
    let mut texts = fields.texts("args");
    let has_rest = texts.pop_if(|last| last.text == "**").is_some();
    let args: Vec<_> = texts.iter().filter_map(|text| glob(reader, text)).collect();
    if let Some(text) = texts.iter().find(|text| text.text == "**") {
        reader.error(text.at, "`**` stands for any number of arguments only at the end");
    }
    let args_min = fields.number("args_min").and_then(|min| usize::try_from(min).ok());
    if args_min.is_some_and(|min| min > args.len()) {
        reader.error(fields.at, "`args_min` is more than there are `args`");
    }
    let command = Command {
        path: words,
        flags,
        args_min: args_min.unwrap_or(args.len()),
        args,
        has_rest,
        is_flags_first: fields.bool("flags_first").unwrap_or(false),
        rule: context.rule(&format!("commands.{}", path.text), path.at.line),
    };
    fields.finish();
    command
}

/// `-s, --state: [open, closed]`, and the other forms of a flag.
fn flag(reader: &Reader<'_>, names: &Text, node: Node) -> Flag {
    let spellings: Vec<_> = names.text.split(',').map(|name| name.trim().to_owned()).collect();
    let is_name = |name: &String| {
        let is_flag = name.len() > 1 && name.starts_with('-') && name != "--";
        is_flag && !name.contains(['=', ' ', '\t']) && !name.starts_with("---")
    };
    if !spellings.iter().all(is_name) {
        reader.error(names.at, format!("`{}` is no flag, or flags with commas between them", names.text));
    }
    let (value, is_required) = flag_value(reader, node);
    Flag { names: spellings, value, is_required }
}

fn flag_value(reader: &Reader<'_>, node: Node) -> (FlagValue, bool) {
    let at = node.at;
    match node.value {
        Yaml::Bool(true) => (FlagValue::None, false),
        Yaml::Text(text) => {
            let text = Text { at, text };
            (FlagValue::Required(glob(reader, &text).into_iter().collect()), false)
        }
        Yaml::List(_) => {
            let globs = reader.texts(node).iter().filter_map(|text| glob(reader, text)).collect();
            (FlagValue::Required(globs), false)
        }
        Yaml::Map(_) => {
            let mut fields = reader.fields(node, &FLAG);
            let values = fields.take("values").map(|(_, node)| reader.texts(node));
            let globs = values.map(|values| values.iter().filter_map(|text| glob(reader, text)).collect());
            let is_optional = fields.bool("optional").unwrap_or(false);
            let is_required = fields.bool("required").unwrap_or(false);
            fields.finish();
            let value = match (globs, is_optional) {
                (Some(globs), true) => FlagValue::Optional(globs),
                (Some(globs), false) => FlagValue::Required(globs),
                (None, false) => FlagValue::None,
                (None, true) => {
                    reader.error(at, "an optional value needs `values`");
                    FlagValue::None
                }
            };
            (value, is_required)
        }
        Yaml::Bool(false) | Yaml::Int(_) | Yaml::Null | Yaml::Odd(_) => {
            reader.error(at, "expected `true` for a flag without a value, or patterns for its value");
            (FlagValue::None, false)
        }
    }
}

fn glob(reader: &Reader<'_>, text: &Text) -> Option<Glob> {
    Glob::new(&text.text).map_err(|error| bad_pattern(reader, text, &error)).ok()
}
