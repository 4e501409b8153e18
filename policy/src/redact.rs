//! Taking secrets out of arguments before they are recorded.

use crate::glob::{Glob, GlobError};
use crate::verdict::shortened;

/// What stands in a record for what was taken out.
pub(crate) const REDACTED: &str = "[REDACTED]";

/// One of `redact_patterns`. It over-approximates: a record that says too little does no harm.
#[derive(Clone, Debug)]
pub(crate) struct ArgRedaction {
    /// The whole pattern, against whole arguments.
    whole: Glob,
    /// The pattern's name, in lower case and without dashes: `session` of `--session=*`.
    name: String,
    /// Whether the name must be a flag's whole name, or only be part of it.
    is_exact: bool,
}

impl ArgRedaction {
    pub(crate) fn new(pattern: &str) -> Result<Self, GlobError> {
        let name = pattern.split_once('=').map_or(pattern, |(name, _)| name);
        let is_plain = !name.contains(['*', '?', '[', '{', '\\']);
        Ok(Self {
            whole: Glob::new(pattern)?,
            name: if is_plain { name.trim_start_matches('-').to_ascii_lowercase() } else { String::new() },
            is_exact: name.starts_with('-'),
        })
    }

    fn names(&self, flag: &str) -> bool {
        let flag = flag.trim_start_matches('-').to_ascii_lowercase();
        if self.name.is_empty() {
            return false;
        }
        if self.is_exact { flag == self.name } else { flag.contains(&self.name) }
    }
}

/// The most arguments in one record.
const ARGS_MAX: usize = 256;

/// The longest argument in a record, in bytes.
const ARG_BYTES_MAX: usize = 1024;

/// The arguments as a record may show them. Bytes that are not UTF-8 become U+FFFD; what is too long or too many is cut,
/// and says so.
pub(crate) fn redacted(argv: &[&[u8]], rules: &[ArgRedaction]) -> Vec<String> {
    let kept = argv.get(..ARGS_MAX).unwrap_or(argv);
    let mut shown: Vec<_> = redacted_each(kept, rules)
        .into_iter()
        .map(|arg| shortened(&arg, ARG_BYTES_MAX).into_owned())
        .collect();
    if argv.len() > kept.len() {
        shown.push(format!("... and {} more", argv.len() - kept.len()));
    }
    shown
}

fn redacted_each(argv: &[&[u8]], rules: &[ArgRedaction]) -> Vec<String> {
    let mut is_value = false;
    let mut shown = Vec::with_capacity(argv.len());
    for arg in argv {
        let text = String::from_utf8_lossy(arg);
        let was_value = std::mem::take(&mut is_value);
        let by_name = |flag: &str| rules.iter().any(|rule| rule.names(flag));
        shown.push(match text.split_once('=') {
            Some((name, _)) if by_name(name) => format!("{name}={REDACTED}"),
            Some((name, _)) if rules.iter().any(|rule| rule.whole.matches(arg)) => {
                format!("{name}={REDACTED}")
            }
            None if by_name(&text) => {
                is_value = true;
                text.into_owned()
            }
            Some(_) | None if was_value || rules.iter().any(|rule| rule.whole.matches(arg)) => {
                REDACTED.to_owned()
            }
            Some(_) | None => text.into_owned(),
        });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_out_values_in_every_spelling() {
        let rules: Vec<_> = ["--session=*", "token", "sk-*"]
            .iter()
            .map(|pattern| ArgRedaction::new(pattern).unwrap())
            .collect();
        let show = |args: &str| {
            let argv: Vec<&[u8]> = args.split(' ').map(str::as_bytes).collect();
            redacted(&argv, &rules).join(" ")
        };
        assert_eq!(show("get --session=abc x"), "get --session=[REDACTED] x");
        assert_eq!(show("get --session abc x"), "get --session [REDACTED] x");
        assert_eq!(
            show("--access-token=1 --Token 2 token=3"),
            "--access-token=[REDACTED] --Token [REDACTED] token=[REDACTED]"
        );
        assert_eq!(show("a sk-123 b"), "a [REDACTED] b");
        assert_eq!(show("--sessions abc"), "--sessions abc");
        let many: Vec<&[u8]> = vec![b"x"; 300];
        assert_eq!(redacted(&many, &rules).last().unwrap(), "... and 44 more");
        assert!(redacted(&[&[b'x'; 5000]], &rules)[0].len() < 1100);
    }
}
