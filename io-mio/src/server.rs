//! The server daemon: what is read, opened and joined before the loop runs.

use crate::audit::Audit;
use crate::child::{Account, Children, raise_open_files};
use crate::clock::Clock;
use crate::config::{Purpose, print, server::ServerSettings};
use crate::daemon;
use crate::exit::Fatal;
use crate::listen::{Listener, Owner};
use crate::policy::{PolicyFile, PolicyReader};
use crate::signal::Signals;
use crate::turn::{Loop, Parts};
use carapace_policy::Policy;
use carapace_proto::server::{Server, ServerConfig};
use std::process::ExitCode;
use std::sync::Arc;

/// Runs `carapace-server` with the arguments and the environment of this process.
pub fn main() -> ExitCode {
    daemon::main("carapace-server", |args, environment| match ServerSettings::read(args, environment)? {
        Some(settings) => run(&settings),
        None => Ok(()),
    })
}

fn run(settings: &ServerSettings) -> Result<(), Fatal> {
    if settings.common.purpose == Purpose::PrintConfig {
        return settings.print();
    }
    daemon::prepare(&settings.common);
    let policy_file = PolicyFile::new(settings.policy.value.clone());
    let policy = policy_file.load()?;
    if settings.common.purpose == Purpose::Check {
        return print(&format!("{}: fine\n", settings.policy.value.display()));
    }
    serve(settings, policy_file, policy)
}

fn serve(settings: &ServerSettings, policy_file: PolicyFile, policy: Policy) -> Result<(), Fatal> {
    let open_files = raise_open_files().map_err(daemon::failed("descriptor limit"))?;
    let audit = Audit::open(&settings.audit_log.value, settings.audit_sync.value)?;
    let listener = Listener::tcp(settings.listen.value, Owner::Ask)?;
    let address = listener.address();
    if settings.insecure.value {
        log::warn!("--insecure: whoever reaches {address} is served");
    }
    log::info!("policy {} is in force, from {}", policy.version(), settings.policy.value.display());
    let clock = Clock::start();
    let now = clock.now();
    let machine = Server::new(
        now,
        ServerConfig {
            policy: Arc::new(policy),
            own_uid: nix::unistd::getuid().as_raw(),
            insecure: settings.insecure.value,
            seed: daemon::seed()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    );
    let parts = Parts {
        listeners: vec![listener],
        signals: Some(Signals::catch().map_err(daemon::failed("signals"))?),
        audit: Some(audit),
        children: Some(
            Children::new(Account::own(), open_files).map_err(daemon::failed("standard input of jobs"))?,
        ),
        policy: Some(PolicyReader::new(policy_file)),
    };
    let driver = Loop::new(machine, clock, now, parts).map_err(daemon::failed("event loop"))?;
    log::info!("listening on {address} for agents");
    daemon::run(driver)
}
