//! A server and an agent, joined over the loopback.

use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::{Binaries, Daemon, Launch, StartError};

/// A running server and its agent, with everything they need in one folder. Dropped, they are stopped.
#[derive(Debug)]
pub struct Pair {
    // Dropped in this order: a server that ends under its agent would log a lost link.
    agent: Daemon,
    server: Daemon,
    binaries: Binaries,
    folder: PathBuf,
}

impl Pair {
    /// Starts both, on free ports, with this policy.
    ///
    /// # Errors
    /// When one of them does not start, or the folder cannot be written to.
    pub fn start(binaries: &Binaries, folder: &Path, policy: &str) -> Result<Self, StartError> {
        let failed = |error| StartError::NotRun { program: "carapace-server".to_owned(), error };
        let file = folder.join("policy.yaml");
        fs::write(&file, policy).map_err(failed)?;
        // The server refuses a policy that others may write, whatever our umask is.
        fs::set_permissions(&file, Permissions::from_mode(0o600)).map_err(failed)?;
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Daemon::start(&server_launch(binaries, folder, anywhere), 0)?;
        let agent = Daemon::start(&agent_launch(binaries, folder, server.addr(), anywhere), 1)?;
        Ok(Self { agent, server, binaries: binaries.clone(), folder: folder.to_owned() })
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &Daemon {
        &self.server
    }

    /// The agent. Its address is that of its HTTP port.
    #[must_use]
    pub fn agent(&self) -> &Daemon {
        &self.agent
    }

    /// The one that has ended by itself, and how.
    ///
    /// # Errors
    /// When they cannot be asked.
    pub fn ended(&mut self) -> io::Result<Option<(&'static str, ExitStatus)>> {
        if let Some(status) = self.server.wait(Duration::ZERO)? {
            return Ok(Some(("carapace-server", status)));
        }
        Ok(self.agent.wait(Duration::ZERO)?.map(|status| ("carapace-agent", status)))
    }

    /// The command line that starts such a server again, at the same address.
    #[must_use]
    pub fn server_launch(&self) -> Launch {
        server_launch(&self.binaries, &self.folder, self.server.addr())
    }

    /// The command line that starts such an agent again, at the same address.
    #[must_use]
    pub fn agent_launch(&self) -> Launch {
        agent_launch(&self.binaries, &self.folder, self.server.addr(), self.agent.addr())
    }

    /// Where the server writes its audit log.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// What a shim needs in its environment.
    #[must_use]
    pub fn shim_env(&self) -> (&'static str, PathBuf) {
        ("CARAPACE_AGENT_SOCKET", socket(&self.folder))
    }

    /// Makes a symlink to the shim, named as the tool; its path.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn shim(&self, tool: &str) -> io::Result<PathBuf> {
        let links = self.folder.join("bin");
        fs::create_dir_all(&links)?;
        let link = links.join(tool);
        symlink(self.binaries.path("carapace-shim"), &link)?;
        Ok(link)
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("agent.sock")
}

fn server_launch(binaries: &Binaries, folder: &Path, listen: SocketAddr) -> Launch {
    Launch::new(binaries.path("carapace-server"))
        .arg("--listen")
        .arg(listen.to_string())
        .arg("--policy")
        .arg(folder.join("policy.yaml"))
        .arg("--audit-log")
        .arg(folder.join("audit.log"))
        .env("CARAPACE_GATEWAY_SOCKET", folder.join("gateway.sock"))
}

fn agent_launch(binaries: &Binaries, folder: &Path, server: SocketAddr, http: SocketAddr) -> Launch {
    Launch::new(binaries.path("carapace-agent"))
        .env("CARAPACE_SERVER_HOST", server.ip().to_string())
        .env("CARAPACE_SERVER_PORT", server.port().to_string())
        .env("CARAPACE_HTTP_LISTEN_ADDR", http.ip().to_string())
        .env("CARAPACE_HTTP_PORT", http.port().to_string())
        .env("CARAPACE_CLI_SOCKET", socket(folder))
}
