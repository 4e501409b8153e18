//! The agent daemon: what is read, opened and joined before the loop runs.

use crate::child::raise_open_files;
use crate::clock::Clock;
use crate::config::agent::AgentSettings;
use crate::config::{Origin, Purpose, print};
use crate::daemon;
use crate::exit::Fatal;
use crate::listen::{Listener, Owner};
use crate::signal::Signals;
use crate::turn::{Loop, Parts};
use carapace_proto::agent::{Agent, AgentConfig, AgentListener};
use carapace_proto::limits::{DESCRIPTORS_RESERVED, HTTP_CONNS_MAX};
use carapace_proto::machine::Address;
use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::ExitCode;

/// Who may connect to the shims' socket: its owner and its group.
const SHIM_SOCKET_MODE: u32 = 0o660;

/// Runs `carapace-agent` with the arguments and the environment of this process.
pub fn main() -> ExitCode {
    daemon::main("carapace-agent", |args, environment| match AgentSettings::read(args, environment)? {
        Some(settings) => run(&settings),
        None => Ok(()),
    })
}

fn run(settings: &AgentSettings) -> Result<(), Fatal> {
    match settings.common.purpose {
        Purpose::PrintConfig => settings.print(),
        Purpose::Check => print("fine\n"),
        Purpose::Run => {
            daemon::prepare(&settings.common);
            serve(settings)
        }
    }
}

fn serve(settings: &AgentSettings) -> Result<(), Fatal> {
    let (_, open_files) = raise_open_files().map_err(daemon::failed("descriptor limit"))?;
    let mut listeners = Vec::new();
    let mut kinds = Vec::new();
    for tool in &settings.http_tools.value {
        if !tool.addr.ip().to_canonical().is_loopback() {
            log::warn!(
                "{} can be reached from other machines, and whoever does may use {}",
                tool.addr,
                tool.tool
            );
        }
        let listener = Listener::tcp(tool.addr, Owner::Ignore)?;
        let port = listener.tcp_addr().map_or(tool.addr.port(), |addr| addr.port());
        kinds.push(AgentListener::Http { tool: tool.tool.clone(), port, addr: as_host(tool.addr) });
        listeners.push(listener);
    }
    if let Some(listener) = shim_listener(settings)? {
        kinds.push(AgentListener::Shim);
        listeners.push(listener);
    }
    let lines: Vec<String> = listeners.iter().zip(&kinds).map(|(at, kind)| ready_line(at, kind)).collect();
    let clock = Clock::start();
    let now = clock.now();
    let machine = Agent::new(
        now,
        AgentConfig {
            server: Address::Tcp {
                host: settings.server_host.value.clone(),
                port: settings.server_port.value,
            },
            listeners: kinds,
            allowed_hosts: settings.http_allowed_hosts.value.clone(),
            own_uid: nix::unistd::getuid().as_raw(),
            http_conns_max: conns_max(open_files),
            seed: daemon::seed()?,
            software: concat!("carapace-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
        },
    );
    let parts = Parts {
        listeners,
        signals: Some(Signals::catch().map_err(daemon::failed("signals"))?),
        ..Parts::default()
    };
    let driver = Loop::new(machine, clock, now, parts).map_err(daemon::failed("event loop"))?;
    for line in lines {
        log::info!("{line}");
    }
    daemon::run(driver)
}

/// An address as a request's Host names it.
fn as_host(addr: SocketAddr) -> String {
    match addr.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn ready_line(listener: &Listener, kind: &AgentListener) -> String {
    match kind {
        AgentListener::Http { tool, .. } => format!("listening on {} for {tool}", listener.address()),
        AgentListener::Shim => format!("listening on {} for shims", listener.address()),
    }
}

/// As many clients as there are descriptors, less those for everything else.
fn conns_max(descriptors: u64) -> usize {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    descriptors.saturating_sub(DESCRIPTORS_RESERVED).clamp(1, HTTP_CONNS_MAX)
}

/// The socket for shims. A path that was asked for must work; of the defaults the first that does is taken, and none is
/// no reason not to start: an agent without shims still serves HTTP clients.
fn shim_listener(settings: &AgentSettings) -> Result<Option<Listener>, Fatal> {
    let setting = &settings.cli_socket;
    if setting.origin != Origin::Default {
        let asked_for = setting.value.iter().map(|path| Listener::unix(path, SHIM_SOCKET_MODE));
        return Ok(asked_for.collect::<Result<Vec<_>, _>>()?.into_iter().next());
    }
    let mut refusals = Vec::new();
    for path in &setting.value {
        let bound = make_folder(path)
            .map_err(|error| format!("{}: {error}", path.display()))
            .and_then(|()| Listener::unix(path, SHIM_SOCKET_MODE).map_err(|error| error.to_string()));
        match bound {
            Ok(listener) => return Ok(Some(listener)),
            Err(refusal) => refusals.push(refusal),
        }
    }
    log::warn!("shims cannot be served: {}", refusals.join("; "));
    Ok(None)
}

/// Makes the folder of a default socket, for its owner and its group alone; its parent must be there.
fn make_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.exists() => DirBuilder::new().mode(0o750).create(folder),
        Some(_) | None => Ok(()),
    }
}
