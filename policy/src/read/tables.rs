//! The language: every key there is, what it takes, and what it means. The reader takes no key that is not here, the JSON
//! schema is made from here, and a test holds the documentation to it.

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Anything.
    Any,
    Bool,
    /// A mapping with these keys.
    Fields(&'static Table),
    /// A list of mappings with these keys.
    List(&'static Table),
    /// A mapping whose keys the file chooses, and what each of its values may be.
    Map(&'static Self),
    Number {
        min: u64,
        max: u64,
    },
    /// Either of two.
    Or(&'static Self, &'static Self),
    Text,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// A list of texts.
    Texts,
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    /// One sentence for an editor to show.
    pub(crate) help: &'static str,
}

/// The keys of one kind of mapping, in groups.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name in the schema.
    pub(crate) name: &'static str,
    pub(crate) groups: &'static [&'static [Key]],
}

impl Table {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'static Key> {
        self.groups.iter().flat_map(|group| group.iter())
    }

    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, shape: Shape, help: &'static str) -> Key {
    Key { name, shape, help }
}

/// The longest time any key may name, in seconds: a week. Longer is a mistake in the unit.
const SECS_MAX: u64 = 7 * 24 * 3600;

const MIB: u64 = 1024 * 1024;

/// No body that is kept in memory may be longer than this, in bytes, whatever the file says.
const BODY_BYTES_MAX: u64 = 64 * MIB;

const fn secs(min: u64) -> Shape {
    Shape::Number { min, max: SECS_MAX }
}

const BODY: Shape = Shape::Number { min: 1, max: BODY_BYTES_MAX };
const ANY_NUMBER: Shape = Shape::Number { min: 1, max: u64::MAX };
const ID: Shape = Shape::Number { min: 0, max: u32::MAX as u64 - 1 };

pub(crate) static ROOT: Table = Table {
    name: "policy",
    groups: &[&[
        key("tools", Shape::Map(&Shape::Any), "The tools, by name. Whatever is not here is denied."),
        key(
            "clients",
            Shape::List(&CLIENT),
            "Who may use what. Absent: the default clients may use every tool.",
        ),
        key("content_filters", Shape::List(&CONTENT_FILTER), "Regular expressions over what goes out."),
        key("tests", Shape::List(&TEST), "Requests and what must become of them; run at every load."),
    ]],
};

static COMMON: &[Key] = &[
    key("type", Shape::Choice(&["http", "cli"]), "http: an upstream; cli: a program on the host."),
    key("timeout_secs", secs(1), "How long a call may take. Default: 30 for http, 300 for cli."),
    key(
        "max_concurrent",
        Shape::Number { min: 1, max: 65_536 },
        "How many calls may run at once. Default 16.",
    ),
    key("rate_limit", Shape::Fields(&RATE_LIMIT), "How many calls are allowed in a span of time."),
    key("audit", Shape::Fields(&AUDIT), "What the audit log holds."),
    key("redact_output", Shape::Bool, "Remove injected secrets from what comes back. Default true."),
];

pub(crate) static HTTP: Table = Table {
    name: "http_tool",
    groups: &[
        COMMON,
        &[
            key(
                "api",
                Shape::Choice(&["signal-cli", "jsonrpc"]),
                "The profile; implied by the tool's name or its rules.",
            ),
            key("upstream", Shape::Text, "http://HOST:PORT, https://HOST:PORT or unix:/PATH."),
            key("host", Shape::Text, "The Host header, where it is not the upstream's own."),
            key("ca_file", Shape::Text, "Certificates to trust instead of the system's, for https."),
            key("jsonrpc_allow_methods", Shape::Texts, "Globs of methods. Absent or empty: none."),
            key("jsonrpc_deny_methods", Shape::Texts, "Globs of methods; win over jsonrpc_allow_methods."),
            key(
                "jsonrpc_param_filters",
                Shape::Map(&Shape::Or(&Shape::Fields(&FILTER), &Shape::List(&FILTER))),
                "By method: one filter or a list of filters, all of which must pass.",
            ),
            key(
                "jsonrpc_allow_params",
                Shape::Map(&Shape::Texts),
                "By method: the only parameters it may have.",
            ),
            key(
                "event_filters",
                Shape::Map(&Shape::Or(&Shape::Fields(&FILTER), &Shape::List(&FILTER))),
                "By event: which events of a stream may reach the client.",
            ),
            key(
                "attachment_paths",
                Shape::Texts,
                "Directories of the host from which attachments may be sent.",
            ),
            key(
                "http_allow",
                Shape::Texts,
                "METHOD /path patterns: * is one segment, ** at the end is the rest.",
            ),
            key("headers_inject", Shape::Map(&SECRET_VALUE), "Headers that the server adds."),
            key(
                "headers_allow",
                Shape::Texts,
                "Headers of the caller that the upstream may see beside the usual four.",
            ),
            key("max_body_bytes", BODY, "The longest body of a request. Default 16 MiB."),
            key("max_response_bytes", BODY, "The longest answer to a JSON-RPC call. Default 16 MiB."),
            key("max_event_bytes", BODY, "The longest event of a stream. Default 4 MiB."),
            key("event_idle_secs", secs(1), "End an event stream that is silent for so long."),
        ],
    ],
};

pub(crate) static CLI: Table = Table {
    name: "cli_tool",
    groups: &[
        COMMON,
        &[
            key("binary", Shape::Text, "The program's absolute path."),
            key("argv_allow_patterns", Shape::Texts, "Patterns for all arguments, word by word."),
            key("argv_deny_patterns", Shape::Texts, "Words that may not occur in this order anywhere; win."),
            key(
                "commands",
                Shape::Map(&Shape::Fields(&COMMAND)),
                "By subcommand: the flags and arguments it may have.",
            ),
            key("env_allow", Shape::Texts, "Globs of variables that the caller may set."),
            key("env_inject", Shape::Map(&SECRET_VALUE), "Variables that the server sets."),
            key("cwd", Shape::Text, "The directory it starts in. Default /."),
            key("cwd_allowed", Shape::Texts, "Directories at or below which the caller's own may be used."),
            key("stdin", Shape::Bool, "Whether it reads the caller's standard input. Default false."),
            key("tty", Shape::Bool, "Whether a terminal may be asked for. Default false."),
            key("max_output_bytes", ANY_NUMBER, "How much it may print. Default 100 MiB."),
            key(
                "kill_grace_secs",
                Shape::Number { min: 0, max: 600 },
                "How long after TERM it gets KILL. Default 2.",
            ),
            key("limits", Shape::Fields(&LIMITS), "Resource limits."),
            key("run_as", Shape::Text, "The account it runs as, where the server runs as root."),
        ],
    ],
};

pub(crate) static FILTER: Table = Table {
    name: "filter",
    groups: &[&[
        key("field", Shape::Text, "The field's name, or a dotted path."),
        key("fields", Shape::Texts, "Spellings of one field; all that are present are judged."),
        key("allow_patterns", Shape::Texts, "Globs, one of which must match each value."),
        key("deny_patterns", Shape::Texts, "Globs, none of which may match any value; win."),
        key("required", Shape::Bool, "Whether an absent field denies. Default true."),
        key("audit_as", Shape::Text, "The name under which the values go into the audit record."),
    ]],
};

pub(crate) static RATE_LIMIT: Table = Table {
    name: "rate_limit",
    groups: &[&[
        key("max_requests", Shape::Number { min: 1, max: 1_000_000_000 }, "How many calls."),
        key("window_secs", secs(1), "In any span of so many seconds."),
        key("per", Shape::Choice(&["tool", "client"]), "Whether clients share the limit. Default tool."),
    ]],
};

pub(crate) static AUDIT: Table = Table {
    name: "audit",
    groups: &[&[
        key("enabled", Shape::Bool, "Whether calls are recorded. Default true."),
        key("log_body", Shape::Bool, "Whether the body is. Default false."),
        key("log_argv", Shape::Bool, "Whether the arguments are. Default true."),
        key("redact_patterns", Shape::Texts, "Flags and arguments whose values are not recorded."),
    ]],
};

pub(crate) static LIMITS: Table = Table {
    name: "limits",
    groups: &[&[
        key("cpu_secs", secs(1), "Seconds of processor time."),
        key("memory_bytes", Shape::Number { min: MIB, max: u64::MAX }, "Bytes of address space."),
        key("open_files", Shape::Number { min: 3, max: 1 << 20 }, "Open descriptors."),
        key("processes", Shape::Number { min: 1, max: 1 << 22 }, "Processes of the account."),
    ]],
};

const SECRET_VALUE: Shape = Shape::Or(&Shape::Text, &Shape::Fields(&SECRET));

pub(crate) static SECRET: Table = Table {
    name: "secret",
    groups: &[&[
        key("literal", Shape::Text, "The value itself."),
        key("file", Shape::Text, "The absolute path of a file that holds it; read again when it changes."),
        key("env", Shape::Text, "The server's own variable that holds it."),
        key("credential", Shape::Text, "The systemd credential that holds it."),
        key("command", Shape::Texts, "A program and its arguments that print it."),
        key("cache_secs", secs(0), "How long what `command` printed is used. Default 300."),
        key("prefix", Shape::Text, "What stands before it, such as `Bearer `."),
    ]],
};

pub(crate) static COMMAND: Table = Table {
    name: "command",
    groups: &[&[
        key(
            "flags",
            Shape::Map(&Shape::Or(
                &Shape::Or(&Shape::Bool, &Shape::Text),
                &Shape::Or(&Shape::Texts, &Shape::Fields(&FLAG)),
            )),
            "The flags it may have: `true` for one without a value, else globs for the value.",
        ),
        key("args", Shape::Texts, "Globs for its other arguments, in order; `**` at the end is any number."),
        key(
            "args_min",
            Shape::Number { min: 0, max: 1000 },
            "How many of `args` there must be. Default: all.",
        ),
        key("flags_first", Shape::Bool, "Deny flags after the first other argument. Default false."),
    ]],
};

pub(crate) static FLAG: Table = Table {
    name: "flag",
    groups: &[&[
        key("values", Shape::Texts, "Globs, one of which must match the value. Absent: it takes no value."),
        key("optional", Shape::Bool, "Its value may be left out, and comes only behind `=`. Default false."),
        key("required", Shape::Bool, "It must be there. Default false."),
    ]],
};

pub(crate) static CLIENT: Table = Table {
    name: "client",
    groups: &[WHO, &[key("tools", Shape::Texts, "The tools it may use; \"*\" is all of them.")]],
};

static WHO: &[Key] = &[
    key("agent", Shape::Text, "The name of a key; \"*\" is every agent."),
    key("uid", ID, "A user id."),
    key("gid", ID, "A primary group id."),
    key("user", Shape::Text, "A user name."),
    key("group", Shape::Text, "The name of a group that it is a member of."),
];

/// Whom a test or a question is asked for.
pub(crate) static ASKER: Table = Table {
    name: "asker",
    groups: &[WHO, &[key("groups", Shape::Texts, "The names of the groups that it is a member of.")]],
};

pub(crate) static CONTENT_FILTER: Table = Table {
    name: "content_filter",
    groups: &[&[
        key("pattern", Shape::Text, "A regular expression, searched for."),
        key("action", Shape::Choice(&["block", "warn"]), "Refuse the call, or only record that it matched."),
    ]],
};

pub(crate) static TEST: Table = Table {
    name: "test",
    groups: &[
        REQUEST_KEYS,
        &[key("expect", Shape::Choice(&["allow", "deny", "block"]), "What must become of it.")],
    ],
};

/// A question as `carapace-debug policy` takes it.
pub(crate) static REQUEST: Table = Table { name: "request", groups: &[REQUEST_KEYS] };

static REQUEST_KEYS: &[Key] = &[
    key("tool", Shape::Text, "The tool."),
    key("client", Shape::Fields(&ASKER), "Who asks. Absent: somebody who may use every tool."),
    key("method", Shape::Text, "A JSON-RPC method; with `path` an HTTP method."),
    key("params", Shape::Any, "Its parameters."),
    key("argv", Shape::Texts, "The arguments of a program, without its name."),
    key("env", Shape::Map(&Shape::Text), "Variables that the caller sets."),
    key("cwd", Shape::Text, "The caller's directory."),
    key("tty", Shape::Bool, "Whether a terminal is asked for."),
    key("stdin", Shape::Text, "What the program would read."),
    key("path", Shape::Text, "A path with its query; `method` is then the HTTP method."),
    key("body", Shape::Text, "The body of that."),
    key("event", Shape::Text, "The name of an event of a stream."),
    key("data", Shape::Any, "Its data."),
];
