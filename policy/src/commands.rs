//! The strict form of what a program may be asked: a grammar of subcommands, flags and arguments.
//!
//! It reads an argument vector as GNU's and Go's parsers do. Where two of them would read a flag in two ways, both
//! readings must be allowed.

use crate::glob::Glob;
use crate::verdict::{Rule, shown};

/// One subcommand.
#[derive(Debug)]
pub(crate) struct Command {
    /// The words it begins with; none for the program itself.
    pub(crate) path: Vec<String>,
    pub(crate) flags: Vec<Flag>,
    /// What the other arguments must match, in order.
    pub(crate) args: Vec<Glob>,
    /// Whether any number of arguments may follow `args`.
    pub(crate) has_rest: bool,
    pub(crate) args_min: usize,
    /// Whether the program takes everything after its first argument for arguments.
    pub(crate) is_flags_first: bool,
    pub(crate) rule: Rule,
}

/// One flag in all its spellings.
#[derive(Debug)]
pub(crate) struct Flag {
    /// With their dashes.
    pub(crate) names: Vec<String>,
    pub(crate) value: FlagValue,
    pub(crate) is_required: bool,
}

/// What follows a flag.
#[derive(Debug)]
pub(crate) enum FlagValue {
    /// Nothing.
    None,
    /// Nothing, or `=` and a value that one of these matches.
    Optional(Vec<Glob>),
    /// A value that one of these matches, behind `=` or as the next argument.
    Required(Vec<Glob>),
}

/// The subcommand that an argument vector begins with: the one with the longest path.
pub(crate) fn find<'a>(commands: &'a [Command], argv: &[&[u8]]) -> Option<&'a Command> {
    let begins = |command: &&Command| {
        command.path.len() <= argv.len()
            && command.path.iter().zip(argv).all(|(word, arg)| word.as_bytes() == *arg)
    };
    commands.iter().filter(begins).max_by_key(|command| command.path.len())
}

impl Command {
    /// Whether the arguments follow the grammar; the error says what does not, for the caller.
    pub(crate) fn judge(&self, argv: &[&[u8]]) -> Result<(), String> {
        let mut reading =
            Reading { command: self, seen: vec![false; self.flags.len()], args: 0, is_only_args: false };
        let mut rest = argv.get(self.path.len()..).unwrap_or_default();
        while let Some((arg, after)) = rest.split_first() {
            rest = reading.take(arg, after)?;
        }
        reading.finish()
    }
}

/// Reads one argument vector.
struct Reading<'a> {
    command: &'a Command,
    /// Which flags have been seen.
    seen: Vec<bool>,
    args: usize,
    /// `--` has been seen.
    is_only_args: bool,
}

impl<'a> Reading<'a> {
    /// Takes one argument, and the next one where it is a flag's value; returns what is left.
    fn take<'v>(&mut self, arg: &[u8], after: &'v [&'v [u8]]) -> Result<&'v [&'v [u8]], String> {
        if self.is_only_args || arg.len() < 2 || arg.first() != Some(&b'-') {
            self.argument(arg)?;
            return Ok(after);
        }
        if arg == b"--" {
            self.is_only_args = true;
            return Ok(after);
        }
        if self.command.is_flags_first && self.args > 0 {
            return Err("flags must stand before other arguments".to_owned());
        }
        let equals = memchr::memchr(b'=', arg);
        let name = equals.and_then(|at| arg.get(..at)).unwrap_or(arg);
        let value = equals.and_then(|at| arg.get(at + 1..));
        match self.find(name) {
            Some((index, flag)) => {
                // `-f=x` is the value `x` for some parsers and `=x` for others.
                let is_short = name.len() == 2;
                let other = equals.filter(|_| is_short).and_then(|at| arg.get(at..));
                self.flag(index, flag, value, other, after)
            }
            None if arg.starts_with(b"--") => Err(unknown(name)),
            None => self.letters(arg, after),
        }
    }

    fn find(&self, name: &[u8]) -> Option<(usize, &'a Flag)> {
        let is_it = |(_, flag): &(usize, &Flag)| flag.names.iter().any(|known| known.as_bytes() == name);
        self.command.flags.iter().enumerate().find(is_it)
    }

    fn flag<'v>(
        &mut self,
        index: usize,
        flag: &Flag,
        value: Option<&[u8]>,
        other_value: Option<&[u8]>,
        after: &'v [&'v [u8]],
    ) -> Result<&'v [&'v [u8]], String> {
        if let Some(seen) = self.seen.get_mut(index) {
            *seen = true;
        }
        let name = flag.names.first().map_or("", String::as_str);
        let (globs, value, rest) = match (&flag.value, value, after.split_first()) {
            (FlagValue::None, None, _) | (FlagValue::Optional(_), None, _) => return Ok(after),
            (FlagValue::None, Some(_), _) => return Err(format!("flag `{name}` takes no value")),
            (FlagValue::Optional(globs) | FlagValue::Required(globs), Some(value), _) => {
                (globs, value, after)
            }
            (FlagValue::Required(globs), None, Some((value, rest))) => (globs, *value, rest),
            (FlagValue::Required(_), None, None) => return Err(format!("flag `{name}` needs a value")),
        };
        let is_allowed = |value: &[u8]| globs.iter().any(|glob| glob.matches(value));
        if is_allowed(value) && other_value.is_none_or(is_allowed) {
            return Ok(rest);
        }
        Err(format!("this value of `{name}` is not allowed"))
    }

    /// `-abc`: flags of one letter, the last of which may have its value behind it or as the next argument.
    fn letters<'v>(&mut self, arg: &[u8], after: &'v [&'v [u8]]) -> Result<&'v [&'v [u8]], String> {
        let mut letters = arg.get(1..).unwrap_or_default();
        while let Some((letter, rest)) = letters.split_first() {
            let name = [b'-', *letter];
            let (index, flag) = self.find(&name).ok_or_else(|| unknown(&name))?;
            match flag.value {
                FlagValue::None => {
                    self.flag(index, flag, None, None, after)?;
                    letters = rest;
                }
                FlagValue::Optional(_) | FlagValue::Required(_) if rest.is_empty() => {
                    return self.flag(index, flag, None, None, after);
                }
                FlagValue::Optional(_) | FlagValue::Required(_) => {
                    let other = rest.strip_prefix(b"=");
                    return self.flag(index, flag, Some(rest), other, after);
                }
            }
        }
        Ok(after)
    }

    fn argument(&mut self, arg: &[u8]) -> Result<(), String> {
        let place = self.args;
        self.args += 1;
        match self.command.args.get(place) {
            Some(glob) if glob.matches(arg) => Ok(()),
            Some(_) => Err(format!("argument {} is not allowed", place + 1)),
            None if self.command.has_rest => Ok(()),
            None => Err("there are more arguments than allowed".to_owned()),
        }
    }

    fn finish(self) -> Result<(), String> {
        if self.args < self.command.args_min {
            return Err("an argument is missing".to_owned());
        }
        let missing =
            self.command.flags.iter().zip(&self.seen).find(|(flag, seen)| flag.is_required && !**seen);
        match missing {
            Some((flag, _)) => {
                Err(format!("flag `{}` is missing", flag.names.first().map_or("", String::as_str)))
            }
            None => Ok(()),
        }
    }
}

fn unknown(name: &[u8]) -> String {
    format!("flag `{}` is not allowed", shown(&String::from_utf8_lossy(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globs(patterns: &[&str]) -> Vec<Glob> {
        patterns.iter().map(|pattern| Glob::new(pattern).unwrap()).collect()
    }

    fn flag(names: &[&str], value: FlagValue) -> Flag {
        Flag { names: names.iter().map(|&name| name.to_owned()).collect(), value, is_required: false }
    }

    fn command() -> Command {
        Command {
            path: vec!["pr".to_owned(), "list".to_owned()],
            flags: vec![
                flag(&["-s", "--state"], FlagValue::Required(globs(&["open", "closed"]))),
                flag(&["-w", "--web"], FlagValue::None),
                flag(&["-v"], FlagValue::None),
                flag(&["-L", "--limit"], FlagValue::Required(globs(&["*"]))),
                flag(&["--color"], FlagValue::Optional(globs(&["always"]))),
            ],
            args: globs(&["a*", "b*"]),
            has_rest: false,
            args_min: 0,
            is_flags_first: false,
            rule: Rule::new("t", 1),
        }
    }

    fn judge(command: &Command, args: &str) -> bool {
        let argv: Vec<&[u8]> = args.split(' ').map(str::as_bytes).collect();
        find(std::slice::from_ref(command), &argv).is_some_and(|command| command.judge(&argv).is_ok())
    }

    #[test]
    fn follows_the_grammar() {
        for args in [
            "pr list",
            "pr list --state open",
            "pr list --state=closed",
            "pr list -s open",
            "pr list -sopen",
            "pr list -wv",
            "pr list -wvs open",
            "pr list -wsopen",
            "pr list ax bx",
            "pr list ax --web bx",
            "pr list -- ax",
            "pr list --color",
            "pr list --color=always",
            "pr list -L=5",
            "pr list -L -x",
            "pr list --limit --web",
        ] {
            assert!(judge(&command(), args), "{args}");
        }
    }

    #[test]
    fn denies_everything_else() {
        for args in [
            "pr",
            "list pr",
            "pr merge",
            "-w pr list",
            "pr list --state",
            "pr list --state merged",
            "pr list --stat open",
            "pr list --web=1",
            "pr list -x",
            "pr list -wx",
            "pr list -s=open",
            "pr list --color other",
            "pr list bx",
            "pr list ax bx cx",
            "pr list --json x",
            "pr list -- --web",
            "pr list --=x",
            "pr list --color=never",
            "pr list -",
            "pr list --STATE open",
        ] {
            assert!(!judge(&command(), args), "{args}");
        }
    }

    #[test]
    fn knows_what_must_be_there() {
        let mut strict = command();
        strict.args_min = 1;
        strict.is_flags_first = true;
        assert!(
            judge(&strict, "pr list -w ax")
                && !judge(&strict, "pr list ax -w")
                && !judge(&strict, "pr list -w")
        );
        strict.flags[0].is_required = true;
        assert!(!judge(&strict, "pr list ax") && judge(&strict, "pr list -s open ax"));
        strict.has_rest = true;
        assert!(judge(&strict, "pr list -s open ax bx cx dx"));
    }

    #[test]
    fn the_longest_path_counts() {
        let mut short = command();
        short.path.pop();
        short.args = globs(&["*", "*"]);
        let commands = [short, command()];
        let argv: Vec<&[u8]> = vec![b"pr", b"list", b"zz"];
        assert!(find(&commands, &argv).unwrap().judge(&argv).is_err());
    }
}
