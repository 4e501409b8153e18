//! Configuration of the server.

use super::setting::{Environment, Reader, Setting};
use super::{Common, CommonFlags, parse, print_table};
use crate::audit::AuditSync;
use crate::exit::Fatal;
use clap::Parser;
use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

/// The trusted side of Carapace: judges what agents ask for, records it, and carries it out.
#[derive(Debug, Parser)]
#[command(name = "carapace-server", version)]
struct Flags {
    /// Where agents connect: an address and a port [env: CARAPACE_LISTEN] [default: 127.0.0.1:8765]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,

    /// The policy file [env: CARAPACE_POLICY_FILE] [default: /etc/carapace/policy.yaml]
    #[arg(long, value_name = "FILE")]
    policy: Option<String>,

    /// The audit log [env: CARAPACE_AUDIT_LOG] [default: /var/log/carapace/audit.log]
    #[arg(long, value_name = "FILE")]
    audit_log: Option<String>,

    /// When audit records go to the disk: `interval` (within a second), `turn` (before what they allow begins) or
    /// `never` (when the system sees fit) [env: CARAPACE_AUDIT_SYNC] [default: interval]
    #[arg(long, value_name = "WHEN")]
    audit_sync: Option<String>,

    /// Serve whoever reaches the address, known or not: for networks that keep strangers out [env: CARAPACE_INSECURE]
    #[arg(long)]
    insecure: bool,

    #[command(flatten)]
    common: CommonFlags,
}

/// Settings of the server.
#[derive(Debug)]
pub struct ServerSettings {
    /// Those of both daemons.
    pub common: Common,
    /// Where agents connect.
    pub listen: Setting<SocketAddr>,
    /// The policy file.
    pub policy: Setting<PathBuf>,
    /// The audit log.
    pub audit_log: Setting<PathBuf>,
    /// When its records go to the disk.
    pub audit_sync: Setting<AuditSync>,
    /// Whether unknown peers are served.
    pub insecure: Setting<bool>,
}

impl ServerSettings {
    /// Reads them. `None`: help or the version was asked for and printed.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        environment: Environment<'_>,
    ) -> Result<Option<Self>, Fatal> {
        let Some(flags) = parse::<Flags>(args)? else { return Ok(None) };
        let reader = Reader { environment };
        let path = |text: &str| Ok(PathBuf::from(text));
        let policy = flags.policy.as_deref();
        let audit_log = flags.audit_log.as_deref();
        let audit_sync = flags.audit_sync.as_deref();
        let settings = Self {
            common: Common::read(&flags.common, &reader)?,
            listen: reader.read(
                "--listen",
                flags.listen.as_deref(),
                "CARAPACE_LISTEN",
                "127.0.0.1:8765",
                socket_addr,
            )?,
            policy: reader.read(
                "--policy",
                policy,
                "CARAPACE_POLICY_FILE",
                "/etc/carapace/policy.yaml",
                path,
            )?,
            audit_log: reader.read(
                "--audit-log",
                audit_log,
                "CARAPACE_AUDIT_LOG",
                "/var/log/carapace/audit.log",
                path,
            )?,
            audit_sync: reader.read(
                "--audit-sync",
                audit_sync,
                "CARAPACE_AUDIT_SYNC",
                "interval",
                when_synced,
            )?,
            insecure: reader.switch("--insecure", flags.insecure, "CARAPACE_INSECURE")?,
        };
        settings.refuse_strangers()?;
        Ok(Some(settings))
    }

    fn refuse_strangers(&self) -> Result<(), Fatal> {
        let addr = self.listen.value;
        if self.insecure.value || addr.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(self.listen.wrong(format_args!(
            "{addr} can be reached from other machines, and links are neither encrypted nor authenticated: whoever \
             reaches it could use every tool. Listen on a loopback address and bring agents there (by ssh, say), or \
             pass --insecure if the network itself keeps strangers out and encrypts, as a VPN does"
        )))
    }

    /// Prints what is in force.
    pub fn print(&self) -> Result<(), Fatal> {
        let rows = [
            self.listen.row(ToString::to_string),
            self.policy.row(|path| path.display().to_string()),
            self.audit_log.row(|path| path.display().to_string()),
            self.audit_sync.row(|sync| match sync {
                AuditSync::Interval => "interval",
                AuditSync::Never => "never",
                AuditSync::Turn => "turn",
            }),
            self.insecure.row(ToString::to_string),
        ];
        print_table(rows.into_iter().chain(self.common.table()))
    }
}

fn socket_addr(text: &str) -> Result<SocketAddr, &'static str> {
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or("an address and a port")
}

fn when_synced(text: &str) -> Result<AuditSync, &'static str> {
    match text {
        "interval" => Ok(AuditSync::Interval),
        "never" => Ok(AuditSync::Never),
        "turn" => Ok(AuditSync::Turn),
        _ => Err("interval, turn or never"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Origin, Purpose};
    use super::*;
    use crate::exit::Exit;
    use std::path::Path;

    fn read(args: &[&str], vars: &[(&str, &str)]) -> Result<ServerSettings, Fatal> {
        let args = ["carapace-server"].iter().chain(args).map(OsString::from);
        let environment = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, v)| v.into());
        ServerSettings::read(args, &environment).map(Option::unwrap)
    }

    #[test]
    fn defaults_are_those_of_the_guide() {
        let settings = read(&[], &[]).unwrap();
        assert_eq!(settings.listen.value.to_string(), "127.0.0.1:8765");
        assert_eq!(settings.policy.value, Path::new("/etc/carapace/policy.yaml"));
        assert_eq!(settings.audit_log.value, Path::new("/var/log/carapace/audit.log"));
        assert_eq!(settings.audit_sync.value, AuditSync::Interval);
        assert_eq!(settings.common.purpose, Purpose::Run);
        assert_eq!(settings.common.log_level.value, log::LevelFilter::Info);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_defaults() {
        let vars =
            [("CARAPACE_POLICY_FILE", "/env"), ("CARAPACE_LOG_JSON", "true"), ("CARAPACE_AUDIT_LOG", "")];
        let settings = read(&["--policy", "/flag"], &vars).unwrap();
        assert_eq!(settings.policy.value, Path::new("/flag"));
        assert_eq!(settings.policy.origin, Origin::Flag);
        assert!(settings.common.log_json.value);
        assert_eq!(settings.common.log_json.origin, Origin::Environment);
        assert_eq!(settings.audit_log.origin, Origin::Default, "empty is absent");
    }

    #[test]
    fn a_value_that_does_not_parse_names_itself() {
        let flag = |args: &[&str]| read(args, &[]).unwrap_err();
        let var = |name, value| read(&[], &[(name, value)]).unwrap_err();
        for (fatal, exit, message) in [
            (flag(&["--listen", "nowhere"]), Exit::Usage, "--listen: `nowhere` is not an address and a port"),
            (
                flag(&["--audit-sync", "often"]),
                Exit::Usage,
                "--audit-sync: `often` is not interval, turn or never",
            ),
            (
                var("CARAPACE_LOG_LEVEL", "loud"),
                Exit::Config,
                "CARAPACE_LOG_LEVEL: `loud` is not off, error, warn, info, debug or trace",
            ),
            (
                var("CARAPACE_LOG_JSON", "maybe"),
                Exit::Config,
                "CARAPACE_LOG_JSON: `maybe` is not true or false",
            ),
        ] {
            assert_eq!((fatal.exit, fatal.message.as_str()), (exit, message));
        }
        let unknown = flag(&["--lisen", "x"]);
        assert_eq!(unknown.exit, Exit::Usage);
        assert!(unknown.message.contains("'--lisen'"), "{}", unknown.message);
    }

    #[test]
    fn strangers_are_let_in_only_when_asked_to() {
        for address in ["0.0.0.0:8765", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            let fatal = read(&["--listen", address], &[]).unwrap_err();
            assert!(fatal.message.contains("--insecure"), "{}", fatal.message);
            read(&["--listen", address, "--insecure"], &[]).unwrap();
        }
        for address in ["127.0.0.1:0", "[::1]:1", "127.9.9.9:1", "localhost:1"] {
            read(&["--listen", address], &[]).unwrap();
        }
        assert_eq!(read(&[], &[("CARAPACE_LISTEN", "0.0.0.0:1")]).unwrap_err().exit, Exit::Config);
    }
}
