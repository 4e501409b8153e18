//! Policies that several tests use.

/// The deployment guide's, as it stands there; `{upstream}` is where it says `http://127.0.0.1:18080`, because that port
/// may be taken where tests run.
pub(crate) const GUIDE: &str = r#"tools:
  signal-cli:
    type: http
    upstream: "{upstream}"
    jsonrpc_allow_methods:
      - send
      - receive
      - listMessages
      - version
    jsonrpc_deny_methods:
      - deleteEverything
      - removeAccount
    jsonrpc_param_filters:
      send:
        field: "recipientNumber"
        allow_patterns:
          - "+1*"  # Allow all US numbers
        deny_patterns:
          - "+15551234567"  # Block spam numbers (customize)
    rate_limit:
      max_requests: 100
      window_secs: 60
    timeout_secs: 30
    audit:
      enabled: true
      log_body: false
"#;

/// Some HTTP rules without the guide's rate limit, and these tools: name, program, further keys.
pub(crate) fn policy_with_tools(tools: &[(&str, &str, &str)]) -> String {
    let mut policy = String::from(
        r#"tools:
  signal-cli:
    type: http
    upstream: "{upstream}"
    jsonrpc_allow_methods: [send, version, receive]
    jsonrpc_param_filters:
      send: { field: recipient, allow_patterns: ["+1*"], deny_patterns: ["+15551234567"] }
"#,
    );
    for (name, binary, keys) in tools {
        policy.push_str(&format!("  {name}:\n    type: cli\n    binary: {binary}\n"));
        for line in keys.lines().map(str::trim).filter(|line| !line.is_empty()) {
            policy.push_str(&format!("    {line}\n"));
        }
    }
    policy
}
