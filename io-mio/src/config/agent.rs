//! Configuration of the agent.

use super::setting::{Environment, Origin, Reader, Setting};
use super::{Common, CommonFlags, parse, print_table};
use crate::exit::Fatal;
use clap::Parser;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The tool that the one port speaks for when no others are named.
const DEFAULT_TOOL: &str = "signal-cli";

/// The untrusted side of Carapace: looks like the services of a host, and asks the server for each call.
#[derive(Debug, Parser)]
#[command(name = "carapace-agent", version)]
struct Flags {
    /// Where the server is: a host and a port
    /// [env: CARAPACE_SERVER_HOST and CARAPACE_SERVER_PORT] [default: 127.0.0.1:8765]
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,

    /// The port that HTTP clients use, for the tool signal-cli [env: CARAPACE_HTTP_PORT] [default: 8080]
    #[arg(long, value_name = "PORT")]
    http_port: Option<String>,

    /// The address that HTTP clients use [env: CARAPACE_HTTP_LISTEN_ADDR] [default: 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    http_listen_addr: Option<String>,

    /// Several tools, each with an address of its own, in place of the one port:
    /// signal-cli=127.0.0.1:8080,github=127.0.0.1:8081 [env: CARAPACE_HTTP_TOOLS]
    #[arg(long, value_name = "TOOL=ADDR:PORT,...")]
    http_tools: Option<String>,

    /// Names that HTTP clients may call this machine by, beside loopback and the listening address
    /// [env: CARAPACE_HTTP_ALLOWED_HOSTS]
    #[arg(long, value_name = "NAME,...")]
    http_allowed_hosts: Option<String>,

    /// The socket that shims use [env: CARAPACE_CLI_SOCKET] [default: /run/carapace/agent.sock, or
    /// carapace/agent.sock in $XDG_RUNTIME_DIR, or .carapace/agent.sock in $HOME]
    #[arg(long, value_name = "PATH")]
    cli_socket: Option<String>,

    #[command(flatten)]
    common: CommonFlags,
}

/// Where HTTP clients of a tool connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolListener {
    /// The tool's name.
    pub tool: String,
    /// Where its clients connect.
    pub addr: SocketAddr,
}

/// Settings of the agent.
#[derive(Debug)]
pub struct AgentSettings {
    /// Those of both daemons.
    pub common: Common,
    /// The server's host.
    pub server_host: Setting<String>,
    /// The server's port.
    pub server_port: Setting<u16>,
    /// A port for each tool.
    pub http_tools: Setting<Vec<ToolListener>>,
    /// Further names of this machine.
    pub http_allowed_hosts: Setting<Vec<String>>,
    /// Where shims connect: the first of these paths that can be used. One that was asked for stands alone.
    pub cli_socket: Setting<Vec<PathBuf>>,
}

impl AgentSettings {
    /// Reads them. `None`: help or the version was asked for and printed.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        environment: Environment<'_>,
    ) -> Result<Option<Self>, Fatal> {
        let Some(flags) = parse::<Flags>(args)? else { return Ok(None) };
        let reader = Reader { environment };
        let common = Common::read(&flags.common, &reader)?;
        let (server_host, server_port) = server(&flags, &reader)?;
        let hosts = flags.http_allowed_hosts.as_deref();
        let http_allowed_hosts =
            reader.read("--http-allowed-hosts", hosts, "CARAPACE_HTTP_ALLOWED_HOSTS", "", |text| {
                Ok(items(text).map(str::to_owned).collect())
            })?;
        let mut cli_socket =
            reader.read("--cli-socket", flags.cli_socket.as_deref(), "CARAPACE_CLI_SOCKET", "", |text| {
                Ok(vec![PathBuf::from(text)])
            })?;
        if cli_socket.origin == Origin::Default {
            cli_socket.value = default_sockets(&reader)?;
        }
        let http_tools = http_tools(&flags, &reader)?;
        Ok(Some(Self { common, server_host, server_port, http_tools, http_allowed_hosts, cli_socket }))
    }

    /// Prints what is in force.
    pub fn print(&self) -> Result<(), Fatal> {
        let listener = |tool: &ToolListener| format!("{}={}", tool.tool, tool.addr);
        let rows = [
            self.server_host.row(ToString::to_string),
            self.server_port.row(ToString::to_string),
            self.http_tools.row(|tools| tools.iter().map(listener).collect::<Vec<_>>().join(",")),
            self.http_allowed_hosts.row(|hosts| hosts.join(",")),
            self.cli_socket.row(|paths| {
                paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
            }),
        ];
        print_table(rows.into_iter().chain(self.common.table()))
    }
}

/// The flag gives host and port at once, the environment each by itself.
fn server(flags: &Flags, reader: &Reader<'_>) -> Result<(Setting<String>, Setting<u16>), Fatal> {
    let given = flags.server.as_deref().map(|text| split_host(text).unwrap_or((text, "")));
    let host = given.map(|(host, _)| host);
    let host = reader.read("--server", host, "CARAPACE_SERVER_HOST", "127.0.0.1", |text| {
        let is_host = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        is_host.then(|| text.to_owned()).ok_or("a host and a port")
    })?;
    let port = given.map(|(_, port)| port);
    let port = reader.read("--server", port, "CARAPACE_SERVER_PORT", "8765", |text| {
        text.parse().ok().filter(|port| *port != 0).ok_or("a host and a port")
    })?;
    Ok((host.labelled("server-host"), port.labelled("server-port")))
}

/// `host:port`, where an IPv6 address stands in brackets.
fn split_host(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => Some((inner.strip_suffix(']')?, port)),
        None => (!host.contains(':')).then_some((host, port)),
    }
}

fn http_tools(flags: &Flags, reader: &Reader<'_>) -> Result<Setting<Vec<ToolListener>>, Fatal> {
    let port =
        reader.read("--http-port", flags.http_port.as_deref(), "CARAPACE_HTTP_PORT", "8080", |text| {
            text.parse::<u16>().map_err(|_| "a port")
        })?;
    let addr = reader.read(
        "--http-listen-addr",
        flags.http_listen_addr.as_deref(),
        "CARAPACE_HTTP_LISTEN_ADDR",
        "127.0.0.1",
        |text| match text {
            "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
            text => text.parse::<IpAddr>().map_err(|_| "an IP address"),
        },
    )?;
    let mut tools = reader.read(
        "--http-tools",
        flags.http_tools.as_deref(),
        "CARAPACE_HTTP_TOOLS",
        "",
        tool_listeners,
    )?;
    if tools.origin == Origin::Default {
        let addr = SocketAddr::new(addr.value, port.value);
        tools.value = vec![ToolListener { tool: DEFAULT_TOOL.to_owned(), addr }];
    }
    Ok(tools)
}

fn tool_listeners(text: &str) -> Result<Vec<ToolListener>, &'static str> {
    let wrong = "a list of TOOL=ADDR:PORT, each tool and each address once";
    let mut tools = Vec::new();
    let (mut names, mut addrs) = (BTreeSet::new(), BTreeSet::new());
    for item in items(text) {
        let (tool, addr) = item.split_once('=').ok_or(wrong)?;
        let addr: SocketAddr = addr.trim().parse().map_err(|_| wrong)?;
        let tool = tool.trim();
        let is_new = names.insert(tool) && (addr.port() == 0 || addrs.insert(addr));
        if tool.is_empty() || !is_new {
            return Err(wrong);
        }
        tools.push(ToolListener { tool: tool.to_owned(), addr });
    }
    if tools.is_empty() && !text.is_empty() { Err(wrong) } else { Ok(tools) }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Never in `/tmp`, where anybody could put a socket of that name first.
fn default_sockets(reader: &Reader<'_>) -> Result<Vec<PathBuf>, Fatal> {
    let mut paths = vec![PathBuf::from("/run/carapace/agent.sock")];
    if let Some(folder) = reader.variable("XDG_RUNTIME_DIR")? {
        paths.push(PathBuf::from(folder).join("carapace/agent.sock"));
    }
    if let Some(folder) = reader.variable("HOME")? {
        paths.push(PathBuf::from(folder).join(".carapace/agent.sock"));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use std::path::Path;

    fn read(args: &[&str], vars: &[(&str, &str)]) -> Result<AgentSettings, Fatal> {
        let args = ["carapace-agent"].iter().chain(args).map(OsString::from);
        let environment = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, v)| v.into());
        AgentSettings::read(args, &environment).map(Option::unwrap)
    }

    #[test]
    fn the_guides_environment_is_understood() {
        let settings = read(
            &[],
            &[
                ("CARAPACE_SERVER_HOST", "host.example"),
                ("CARAPACE_SERVER_PORT", "8766"),
                ("CARAPACE_HTTP_PORT", "8081"),
                ("CARAPACE_HTTP_LISTEN_ADDR", "127.0.0.2"),
                ("HOME", "/home/claw"),
            ],
        )
        .unwrap();
        assert_eq!((settings.server_host.value.as_str(), settings.server_port.value), ("host.example", 8766));
        let addr = "127.0.0.2:8081".parse().unwrap();
        assert_eq!(settings.http_tools.value, [ToolListener { tool: "signal-cli".to_owned(), addr }]);
        assert_eq!(settings.cli_socket.value[0], Path::new("/run/carapace/agent.sock"));
        assert_eq!(settings.cli_socket.value[1], Path::new("/home/claw/.carapace/agent.sock"));
    }

    #[test]
    fn a_server_can_be_named_in_one_flag() {
        for (text, host, port) in
            [("a.example:1", "a.example", 1), ("[::1]:8765", "::1", 8765), ("127.0.0.1:9", "127.0.0.1", 9)]
        {
            let settings = read(&["--server", text], &[("CARAPACE_SERVER_HOST", "other")]).unwrap();
            assert_eq!((settings.server_host.value.as_str(), settings.server_port.value), (host, port));
        }
        for text in ["host", "::1:1", ":", "host:0", "host:x", "a b:1"] {
            let fatal = read(&["--server", text], &[]).unwrap_err();
            assert_eq!(fatal.exit, Exit::Usage, "{text}");
        }
    }

    #[test]
    fn tools_have_a_port_each() {
        let settings = read(&["--http-tools", "a=127.0.0.1:1, b=[::1]:2"], &[]).unwrap();
        let names: Vec<_> = settings.http_tools.value.iter().map(|tool| tool.tool.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        for text in ["a", "a=1", "=127.0.0.1:1", "a=127.0.0.1:1,b=127.0.0.1:1", "a=127.0.0.1:1,a=127.0.0.1:2"]
        {
            let fatal = read(&[], &[("CARAPACE_HTTP_TOOLS", text)]).unwrap_err();
            assert!(fatal.message.starts_with("CARAPACE_HTTP_TOOLS: "), "{}", fatal.message);
        }
    }

    #[test]
    fn a_value_that_does_not_parse_names_itself() {
        for (name, value) in [
            ("CARAPACE_SERVER_PORT", "http"),
            ("CARAPACE_HTTP_PORT", "70000"),
            ("CARAPACE_HTTP_LISTEN_ADDR", "here"),
        ] {
            let fatal = read(&[], &[(name, value)]).unwrap_err();
            assert_eq!(fatal.exit, Exit::Config);
            assert!(fatal.message.starts_with(name) && fatal.message.contains(value), "{}", fatal.message);
        }
    }

    #[test]
    fn a_socket_that_was_asked_for_stands_alone() {
        let settings = read(&["--cli-socket", "/x/y.sock"], &[("HOME", "/h")]).unwrap();
        assert_eq!(settings.cli_socket.value, [Path::new("/x/y.sock")]);
    }
}
