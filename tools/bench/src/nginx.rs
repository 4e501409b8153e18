//! nginx, as what we are compared with: an upstream, and two proxies in a row before it.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use carapace_debug::rig::{Daemon, Launch};

/// One nginx process.
#[derive(Debug)]
pub(crate) struct Nginx {
    daemon: Daemon,
}

/// What it does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    /// Passes everything on to this address.
    Proxy(SocketAddr),
    /// Answers calls.
    Upstream,
}

impl Nginx {
    /// Starts one in `folder`, on a free port; `name` tells it from the others there.
    pub(crate) fn start(folder: &Path, name: &str, role: Role) -> io::Result<Self> {
        let prefix = folder.join(name);
        fs::create_dir(&prefix)?;
        // nginx cannot take port 0: a port that is free at this moment has to do.
        let addr = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let file = prefix.join("nginx.conf");
        fs::write(&file, configuration(addr, role))?;
        let launch = Launch::new("nginx").arg("-e").arg("stderr").arg("-p").arg(&prefix).arg("-c").arg(&file);
        let daemon = Daemon::start_at(&launch, addr).map_err(io::Error::other)?;
        Ok(Self { daemon })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.daemon.addr()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }
}

/// Two proxies in a row.
#[derive(Debug)]
pub(crate) struct Hops {
    outer: Nginx,
    inner: Nginx,
}

impl Hops {
    pub(crate) fn start(folder: &Path, name: &str, upstream: SocketAddr) -> io::Result<Self> {
        let inner = Nginx::start(folder, &format!("{name}-inner"), Role::Proxy(upstream))?;
        let outer = Nginx::start(folder, &format!("{name}-outer"), Role::Proxy(inner.addr()))?;
        Ok(Self { outer, inner })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.outer.addr()
    }

    pub(crate) fn pids(&self) -> [u32; 2] {
        [self.outer.pid(), self.inner.pid()]
    }
}

/// One process without a master, so that its CPU is all there is; keep-alive for ever on both sides; no access log:
/// the fastest that nginx is.
fn configuration(addr: SocketAddr, role: Role) -> String {
    let (peers, locations) = match role {
        Role::Proxy(next) => (
            format!("upstream next {{ server {next}; keepalive 128; keepalive_requests 1000000000; }}"),
            "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_read_timeout 1h;
        location / { proxy_pass http://next; }
        location /api/v1/events { proxy_pass http://next; proxy_buffering off; }"
                .to_owned(),
        ),
        Role::Upstream => (
            String::new(),
            "location = /api/v1/rpc {
            default_type application/json;
            return 200 '{\"jsonrpc\":\"2.0\",\"result\":{\"timestamp\":1700000000000,\"results\":[]},\"id\":\"1\"}';
        }"
            .to_owned(),
        ),
    };
    format!(
        "daemon off; master_process off; worker_rlimit_nofile 65536; pid nginx.pid; error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; tcp_nodelay on;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {peers}
    server {{
        listen {addr};
        {locations}
    }}
}}
"
    )
}
