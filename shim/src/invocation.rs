//! What was asked for.

use crate::end::End;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The name under which the shim speaks for itself.
const OWN_NAME: &str = "carapace-shim";
/// In the environment of everything that Carapace runs.
const JOB_VARIABLE: &str = "_CARAPACE_JOB";
const USAGE: &str =
    "usage: carapace-shim --tool NAME [ARGUMENT...], or a symbolic link to it named like the tool";
const HELP: &str = "\
Runs a tool on the Carapace host as if it were local.

Usage: carapace-shim --tool NAME [ARGUMENT...]
       NAME [ARGUMENT...]        where NAME is a symbolic link to carapace-shim

Options, under its own name only:
  --tool NAME   the tool to run; everything behind it is the tool's
  --version     print the version
  --help        print this

Environment:
  CARAPACE_AGENT_SOCKET   the agent's socket; otherwise /run/carapace/agent.sock,
                          $XDG_RUNTIME_DIR/carapace/agent.sock, $HOME/.carapace/agent.sock

Exit status: the tool's own; 126 denied by policy, 127 unknown tool, 125 any other failure of Carapace's.
";

/// A tool to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) tool: OsString,
    pub(crate) args: Vec<OsString>,
}

impl Invocation {
    /// Reads the arguments of this process, of which the first is the name that it was called by.
    pub(crate) fn read(
        args: impl IntoIterator<Item = OsString>,
        is_set: impl Fn(&str) -> bool,
    ) -> Result<Self, End> {
        let mut args = args.into_iter();
        let called = args.next().unwrap_or_default();
        let name = Path::new(&called).file_name().unwrap_or_default();
        let invocation = if name == OWN_NAME {
            Self::read_own(args)?
        } else {
            Self { tool: name.to_owned(), args: args.collect() }
        };
        if is_set(JOB_VARIABLE) {
            let tool = invocation.tool.to_string_lossy();
            return Err(End::failed(format!(
                "{tool}: called from within a job of Carapace's: this would never end"
            )));
        }
        Ok(invocation)
    }

    fn read_own(mut args: impl Iterator<Item = OsString>) -> Result<Self, End> {
        let option = args.next().unwrap_or_default();
        let tool = match option.as_bytes() {
            b"--version" => return Err(End::Said(format!("{OWN_NAME} {}\n", env!("CARGO_PKG_VERSION")))),
            b"--help" | b"-h" => return Err(End::Said(HELP.to_owned())),
            b"--tool" => args.next().filter(|tool| is_name(tool)),
            _ => None,
        };
        let tool = tool.ok_or_else(|| End::failed(USAGE.to_owned()))?;
        Ok(Self { tool, args: args.collect() })
    }
}

fn is_name(tool: &OsStr) -> bool {
    !tool.is_empty() && !tool.as_bytes().contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Invocation, End> {
        Invocation::read(args.iter().map(OsString::from), |_| false)
    }

    fn invocation(tool: &str, args: &[&str]) -> Result<Invocation, End> {
        Ok(Invocation { tool: tool.into(), args: args.iter().map(OsString::from).collect() })
    }

    #[test]
    fn the_tool_is_the_name_it_is_called_by() {
        assert_eq!(read(&["/usr/local/bin/op", "--version"]), invocation("op", &["--version"]));
        assert_eq!(read(&["gh"]), invocation("gh", &[]));
    }

    #[test]
    fn under_its_own_name_the_shim_takes_the_tool_as_an_option() {
        assert_eq!(
            read(&["./carapace-shim", "--tool", "op", "--help", ""]),
            invocation("op", &["--help", ""])
        );
        assert!(matches!(read(&["carapace-shim", "--version"]), Err(End::Said(text)) if text.contains("0.")));
        assert!(matches!(read(&["carapace-shim", "--help"]), Err(End::Said(_))));
        for args in [&["carapace-shim"][..], &["carapace-shim", "op"], &["carapace-shim", "--tool", "a/b"]] {
            assert!(matches!(read(args), Err(End::Failed { code: 125, .. })), "{args:?}");
        }
    }

    #[test]
    fn a_job_of_carapaces_cannot_call_it_again() {
        let end = Invocation::read(["op".into()], |name| name == "_CARAPACE_JOB");
        assert!(matches!(end, Err(End::Failed { code: 125, .. })));
    }
}
