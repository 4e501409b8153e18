//! Runs a tool on the Carapace host as if it were local.
//!
//! | file | what |
//! |---|---|
//! | `invocation` | what was asked for: the tool, its arguments, or a word about the shim itself |
//! | `dial` | which agent to ask, and whether it is one to be trusted |
//! | `run` | the conversation with the agent: frames, credit, how it ended. No system call |
//! | `pump` | moves bytes between the agent and the three standard streams; passes signals on |
//! | `outlet` | writing to a standard stream that may not be made non-blocking, without being blocked by it |
//! | `end` | ends the process the way the tool ended |
#![forbid(unsafe_code)]

mod dial;
mod end;
mod invocation;
mod outlet;
mod pump;
mod run;

use self::end::End;
use self::invocation::Invocation;
use self::run::Run;
use std::env;

fn main() {
    carry_out().carry_out();
}

fn carry_out() -> End {
    let invocation = match Invocation::read(env::args_os(), |name| env::var_os(name).is_some()) {
        Ok(invocation) => invocation,
        Err(end) => return end,
    };
    let agent = match dial::agent(|name| env::var_os(name)) {
        Ok(agent) => agent,
        Err(why) => return End::failed(why),
    };
    let directory = env::current_dir().unwrap_or_default();
    let run = Run::new(&invocation, env::vars_os(), &directory);
    pump::pump(&agent, run).unwrap_or_else(|errno| End::failed(format!("a system call failed: {errno}")))
}
