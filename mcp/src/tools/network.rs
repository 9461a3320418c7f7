//! What sandboxes may reach on the network, and why something was refused. Every request is held to what the user permits this
//! server (`Settings::network`).

use super::arguments::BadArgument;
use crate::{
    capture::bounded,
    scope::{Scope, ScopeError},
    server::SandboxTools,
    settings::permits,
};
use rmcp::{
    RoleServer,
    handler::server::wrapper::{Json, Parameters},
    service::RequestContext,
    tool, tool_router,
};
use sandboxvm_manager::{
    Advice, DialFailure, NetworkSpec, NetworkSpecError, Permitted, Reach, RecordError, Rule, SecretSpec,
    audit::{AuditError, Event, Line, NetworkDecision},
    one_line,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of refusals in a result.
const MAX_REFUSALS: usize = 50;
/// Maximum number of bytes of the log that are searched for them.
const MAX_SEARCHED: u64 = 16 << 20;
/// Maximum length of a name, as a guest asked for it, in bytes.
const MAX_NAME: usize = 320;

/// What a new sandbox is to reach on the network.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkArguments {
    /// What it reaches without rules. Default: allow if there are allow rules, else none.
    reach: Option<ReachArgument>,
    /// What is allowed: domains, *.domain, IP addresses or networks, each optionally with :port or :port/udp.
    #[serde(default)]
    allow: Vec<String>,
    /// What is denied, in the same form. A deny rule beats an allow rule.
    #[serde(default)]
    deny: Vec<String>,
    /// Secrets that commands can use without having them, by the names that the user permits: a variable with the name of
    /// the secret has a placeholder, which becomes the secret in headers of HTTPS requests to the hosts of the secret. These
    /// hosts have to be allowed too.
    #[serde(default)]
    secrets: Vec<String>,
}

/// What a sandbox reaches without rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReachArgument {
    /// Nothing.
    None,
    /// What the allow rules say.
    Allow,
    /// The public internet, but not the host and private networks.
    Public,
}

/// Why a sandbox cannot have such a network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkFailure {
    #[error(transparent)]
    Argument(#[from] BadArgument),
    #[error("cannot give the sandbox this network: {problem}; {permits}")]
    NotPermitted { problem: NetworkSpecError, permits: String },
    #[error("no secret {name:?} can be asked for; {permits}")]
    UnknownSecret { name: String, permits: String },
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("cannot read the network of the sandbox: {0}")]
    Record(#[from] RecordError),
    #[error("cannot read the log of the sandbox: {0}")]
    Audit(#[from] AuditError),
}

/// Arguments of sandbox_network.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkOfArguments {
    /// ID or name of the sandbox.
    sandbox: String,
}

/// The network of a sandbox.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct NetworkShown {
    /// What it reaches without rules.
    reach: ReachArgument,
    /// What is allowed.
    allow: Vec<String>,
    /// What is denied.
    deny: Vec<String>,
    /// The secrets of which it has placeholders, with the hosts that they are for.
    secrets: Vec<String>,
    /// What new sandboxes may ask for at most.
    permitted: String,
    /// What was refused last, newest first.
    refused: Vec<RefusalShown>,
}

/// Something that was refused. Names in it were chosen by programs in the sandbox.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct RefusalShown {
    /// What was refused: a connection, a DNS name, or a request with a secret.
    what: &'static str,
    /// Name of the host, if it is known.
    name: Option<String>,
    /// Address and port, or only the address.
    address: Option<String>,
    /// Why it was refused.
    reason: String,
    /// How often.
    count: u64,
    /// What would allow it, if anything would.
    advice: Option<String>,
}

impl RefusalShown {
    /// Returns true if the two differ at most in their number.
    fn is_like(&self, other: &Self) -> bool {
        (self.what, &self.name, &self.address, &self.reason) == (other.what, &other.name, &other.address, &other.reason)
    }
}

impl NetworkArguments {
    /// Returns the network that the arguments describe, or `None` for a machine without a network card.
    pub(super) fn spec(
        &self,
        permitted: &Permitted,
        secrets: &[SecretSpec],
    ) -> Result<Option<NetworkSpec>, NetworkFailure> {
        let (allow, deny) = (rules("network.allow", &self.allow)?, rules("network.deny", &self.deny)?);
        let named = |name: &String| {
            let found = secrets.iter().find(|secret| secret.name == *name).cloned();
            found.ok_or_else(|| NetworkFailure::UnknownSecret {
                name: one_line(&bounded(name.clone(), MAX_NAME)),
                permits: permits(permitted, secrets),
            })
        };
        let wanted = self.secrets.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let reach = match self.reach {
            None | Some(ReachArgument::None) if allow.is_empty() && !wanted.is_empty() => {
                return Err(BadArgument::new("network.secrets", "allow their hosts, or set reach to public").into());
            }
            None if allow.is_empty() => return Ok(None),
            Some(ReachArgument::None) if allow.is_empty() => return Ok(None),
            Some(ReachArgument::None) => {
                return Err(BadArgument::new("network", "leave out allow, or set reach to allow or public").into());
            }
            None | Some(ReachArgument::Allow) => Reach::Listed,
            Some(ReachArgument::Public) => Reach::Public,
        };
        let spec =
            NetworkSpec { reach, allow, deny, secrets: wanted, limits: permitted.limits, ..NetworkSpec::default() };
        match spec.check().and_then(|()| permitted.check(&spec)) {
            Ok(()) => Ok(Some(spec)),
            Err(problem @ NetworkSpecError::NotPermitted(_)) => {
                Err(NetworkFailure::NotPermitted { problem, permits: permits(permitted, secrets) })
            }
            Err(problem) => Err(BadArgument::new("network", problem).into()),
        }
    }
}

fn rules(argument: &'static str, texts: &[String]) -> Result<Vec<Rule>, BadArgument> {
    let parse = |text: &String| {
        text.parse::<Rule>().map_err(|error| BadArgument::new(argument, format_args!("invalid rule {text:?}: {error}")))
    };
    texts.iter().map(parse).collect()
}

#[tool_router(router = network_router, vis = "pub(crate)")]
impl SandboxTools {
    /// Shows what a sandbox may reach on the network, what was refused last and why, and what would allow it. Call it when a
    /// command in the sandbox cannot reach a host.
    #[tool(annotations(
        title = "Network of a sandbox",
        read_only_hint = true,
        destructive_hint = false,
        open_world_hint = false
    ))]
    async fn sandbox_network(
        &self,
        Parameters(arguments): Parameters<NetworkOfArguments>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<NetworkShown>, String> {
        self.work(context, shown(&self.scope, arguments)).await
    }
}

async fn shown(scope: &Scope, arguments: NetworkOfArguments) -> Result<NetworkShown, NetworkFailure> {
    let sandbox = scope.find(&arguments.sandbox)?;
    let permitted = &scope.settings().network;
    let network = sandbox.network()?.unwrap_or_default();
    let texts = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
    Ok(NetworkShown {
        reach: match network.reach {
            Reach::Nothing => ReachArgument::None,
            Reach::Listed => ReachArgument::Allow,
            Reach::Public => ReachArgument::Public,
        },
        allow: texts(&network.allow),
        deny: texts(&network.deny),
        secrets: network
            .secrets
            .iter()
            .map(|secret| format!("{} for {}", secret.name, secret.hosts.join(", ")))
            .collect(),
        permitted: permits(permitted, &scope.settings().secrets),
        refused: refusals(|end| sandbox.trail().read_before(end), permitted)?,
    })
}

/// Returns the last refusals. `read_before` returns lines of the log that end at a byte, and where they begin.
fn refusals(
    read_before: impl Fn(Option<u64>) -> Result<(Vec<u8>, u64), AuditError>,
    permitted: &Permitted,
) -> Result<Vec<RefusalShown>, AuditError> {
    let (mut found, mut searched, mut end) = (Vec::<RefusalShown>::new(), 0, None);
    while found.len() < MAX_REFUSALS && searched < MAX_SEARCHED && end != Some(0) {
        let (text, start) = read_before(end)?;
        (searched, end) = (searched + text.len() as u64, Some(start));
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        for refused in lines.filter_map(|line| refusal(&line.event, permitted)) {
            // A name is asked for once for each kind of address.
            if let Some(same) = found.iter_mut().find(|other| refused.is_like(other)) {
                same.count = same.count.saturating_add(refused.count);
            } else if found.len() < MAX_REFUSALS {
                found.push(refused);
            }
        }
        if text.is_empty() {
            break;
        }
    }
    Ok(found)
}

fn refusal(event: &Event, permitted: &Permitted) -> Option<RefusalShown> {
    let name = |name: &String| one_line(&bounded(name.clone(), MAX_NAME));
    let reason = |decision: &NetworkDecision| name(decision.reason.as_ref().unwrap_or(&"refused".to_owned()));
    let advice = event.network_advice().map(|advice| advised(&advice, permitted));
    Some(match event {
        Event::NetworkFlow { name: host, address, port, decision, count, .. } if !decision.allowed => RefusalShown {
            what: "connection",
            name: host.as_ref().map(name),
            address: Some(if *port == 0 {
                address.to_string()
            } else {
                std::net::SocketAddr::from((*address, *port)).to_string()
            }),
            reason: reason(decision),
            count: *count,
            advice,
        },
        Event::NetworkName { name: host, decision, count, .. } if !decision.allowed => RefusalShown {
            what: "dns name",
            name: Some(name(host)),
            address: None,
            reason: reason(decision),
            count: *count,
            advice,
        },
        Event::SecretBlocked { secret, host, reason } => RefusalShown {
            what: "request with a secret",
            name: Some(name(host)),
            address: None,
            reason: name(&format!("{secret}: {reason}")),
            count: 1,
            advice: None,
        },
        _ => return None,
    })
}

/// Says what to do in words of this server's tools.
fn advised(advice: &Advice, permitted: &Permitted) -> String {
    match advice {
        Advice::Allow(rule) => {
            let needed = NetworkSpec { reach: Reach::Listed, allow: vec![rule.clone()], ..NetworkSpec::default() };
            match permitted.check(&needed) {
                Ok(()) => format!("create a sandbox with {rule} in network.allow"),
                Err(_) => format!("ask the user to permit {rule} for this server"),
            }
        }
        Advice::NoDeny(rule) => format!("create a sandbox without {rule} in network.deny"),
        Advice::Proxy(DialFailure::NotProxied) => "use TCP: the operator's proxy carries nothing else".to_owned(),
        Advice::Proxy(_) => "ask the user to see to the upstream proxy of this host".to_owned(),
        Advice::Operator(_) => "only the operator of the host can open this address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandboxvm_manager::{EgressLimits, FlowEnd, SecretText, Transport, ValueSource};

    fn permitted(reach: Reach, allow: &[&str]) -> Permitted {
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        Permitted { reach, allow, resolvers: false, proxies: false, limits: EgressLimits::default() }
    }

    fn spec(
        json: serde_json::Value,
        permitted: &Permitted,
        secrets: &[SecretSpec],
    ) -> Result<Option<NetworkSpec>, String> {
        let arguments: NetworkArguments = serde_json::from_value(json).unwrap();
        arguments.spec(permitted, secrets).map_err(|error| error.to_string())
    }

    fn secrets() -> Vec<SecretSpec> {
        let given = ValueSource::Given(SecretText::new("sk-value".into()));
        let json = serde_json::json!({"name": "API_TOKEN", "hosts": ["api.example"], "value": "kept"});
        let secret: SecretSpec = serde_json::from_value(json).unwrap();
        vec![SecretSpec { value: given, ..secret }]
    }

    #[test]
    fn secrets_are_those_that_the_user_permits_by_their_names() {
        let some = permitted(Reach::Listed, &["*.example"]);
        let with = |json: serde_json::Value| spec(json, &some, &secrets());
        let asked = with(serde_json::json!({"allow": ["api.example"], "secrets": ["API_TOKEN"]})).unwrap().unwrap();
        assert_eq!(asked.secrets, secrets());
        assert_eq!(with(serde_json::json!({"allow": ["api.example"]})).unwrap().unwrap().secrets, []);
        let permits = "the user permits reach allow with rules within *.example; secrets that can be asked for: API_TOKEN for \
                       api.example";
        assert_eq!(super::permits(&some, &secrets()), permits);
        for (json, refusal) in [
            (
                serde_json::json!({"allow": ["api.example"], "secrets": ["OTHER\n"]}),
                format!("no secret \"OTHER\\\\n\" can be asked for; {permits}"),
            ),
            (
                serde_json::json!({"secrets": ["API_TOKEN"]}),
                "invalid argument network.secrets: allow their hosts, or set reach to public".to_owned(),
            ),
        ] {
            assert_eq!(with(json), Err(refusal));
        }
        let twice = with(serde_json::json!({"allow": ["api.example"], "secrets": ["API_TOKEN", "API_TOKEN"]}));
        assert!(twice.unwrap_err().contains("there are two with this name"));
        // Its hosts are not allowed because of it.
        let elsewhere = with(serde_json::json!({"allow": ["api.test"], "secrets": ["API_TOKEN"]}));
        assert!(elsewhere.unwrap_err().contains("does not permit the rule api.test"));
    }

    #[test]
    fn networks_are_held_to_what_the_user_permits() {
        let spec = |json: serde_json::Value, permitted: &Permitted| spec(json, permitted, &[]);
        let none = permitted(Reach::Nothing, &[]);
        let some = permitted(Reach::Listed, &["*.example", "host:5432"]);
        let public = permitted(Reach::Public, &[]);
        for json in [serde_json::json!({}), serde_json::json!({"reach": "none", "deny": ["a.example"]})] {
            assert_eq!(spec(json, &none), Ok(None));
        }
        let listed = spec(serde_json::json!({"allow": ["a.example", "host:5432"]}), &some).unwrap().unwrap();
        assert_eq!((listed.reach, listed.allow.len()), (Reach::Listed, 2));
        let all = spec(serde_json::json!({"reach": "public", "deny": ["ads.example"]}), &public).unwrap().unwrap();
        assert_eq!((all.reach, all.deny.len()), (Reach::Public, 1));
        for (json, permitted, refusal) in [
            (
                serde_json::json!({"allow": ["a.example"]}),
                &none,
                "cannot give the sandbox this network: the operator does not permit a network; the user permits no network",
            ),
            (
                serde_json::json!({"reach": "public"}),
                &some,
                "cannot give the sandbox this network: the operator does not permit the public internet; the user permits \
                 reach allow with rules within *.example, host:5432",
            ),
            (
                serde_json::json!({"allow": ["host:22"]}),
                &public,
                "cannot give the sandbox this network: the operator does not permit the rule host:22; the user permits reach \
                 public",
            ),
            (
                serde_json::json!({"reach": "none", "allow": ["a.example"]}),
                &public,
                "invalid argument network: leave out allow, or set reach to allow or public",
            ),
        ] {
            assert_eq!(spec(json, permitted), Err(refusal.to_owned()));
        }
        let rule = spec(serde_json::json!({"deny": ["a b"]}), &public).unwrap_err();
        assert!(rule.starts_with("invalid argument network.deny: invalid rule \"a b\": "), "{rule}");
    }

    fn flow(name: Option<&str>, address: &str, decision: NetworkDecision) -> Event {
        Event::NetworkFlow {
            transport: Transport::Tcp,
            name: name.map(str::to_owned),
            address: address.parse().unwrap(),
            port: 443,
            decision,
            proxied: false,
            bytes_out: 0,
            bytes_in: 0,
            millis: 0,
            end: FlowEnd::NotEstablished,
            count: 3,
        }
    }

    #[test]
    fn refusals_say_what_would_allow_them() {
        let refused = |rule: Option<&str>| NetworkDecision {
            allowed: false,
            rule: rule.map(str::to_owned),
            reason: Some("no rule allows it".to_owned()),
        };
        let some = permitted(Reach::Listed, &["*.example"]);
        let advice = |event: &Event| refusal(event, &some).unwrap().advice.unwrap();
        let inside = flow(Some("a.example"), "1.1.1.1", refused(None));
        assert_eq!(
            refusal(&inside, &some).unwrap(),
            RefusalShown {
                what: "connection",
                name: Some("a.example".into()),
                address: Some("1.1.1.1:443".into()),
                reason: "no rule allows it".into(),
                count: 3,
                advice: Some("create a sandbox with a.example in network.allow".into()),
            }
        );
        let outside = flow(Some("a.test"), "1.1.1.1", refused(None));
        assert_eq!(advice(&outside), "ask the user to permit a.test for this server");
        let denied = flow(Some("a.example"), "1.1.1.1", refused(Some("a.example")));
        assert_eq!(advice(&denied), "create a sandbox without a.example in network.deny");
        let low = NetworkDecision { reason: Some("it is a link-local address".to_owned()), ..refused(None) };
        let below = flow(None, "169.254.169.254", low);
        assert_eq!(advice(&below), "only the operator of the host can open this address");
        let allowed = NetworkDecision { allowed: true, rule: None, reason: None };
        assert_eq!(refusal(&flow(None, "1.1.1.1", allowed), &some), None);
        let hostile = flow(Some("\u{1b}[2Jok\nsandboxvm: "), "1.1.1.1", refused(None));
        let name = refusal(&hostile, &some).unwrap().name.unwrap();
        assert!(!name.contains(['\u{1b}', '\n']), "{name:?}");
    }

    #[test]
    fn last_refusals_are_found_within_a_bound() {
        let some = permitted(Reach::Listed, &["*.example"]);
        let line = |name: &str| {
            let json = serde_json::json!({
                "seq": 1, "time": "2026-01-01T00:00:00.000Z", "sandbox": "abcdefghabcdefgh", "by": {"uid": 0, "pid": 1},
                "event": "network_name", "name": name, "question": 28, "allowed": false, "rule": null,
                "reason": "no rule allows it", "count": 2, "prev": "",
            });
            format!("{json}\n")
        };
        let log = format!("{}not a line\n{}{}", line("a.example"), line("b.example"), line("a.example"));
        let found = refusals(|_| Ok((log.clone().into_bytes(), 0)), &some).unwrap();
        let found: Vec<_> = found.iter().map(|refused| (refused.name.as_deref(), refused.count)).collect();
        assert_eq!(found, [(Some("a.example"), 4), (Some("b.example"), 2)]);
        let none = refusals(|_| Ok((Vec::new(), 0)), &some).unwrap();
        assert!(none.is_empty());
        let reads = std::cell::Cell::new(0_u64);
        let endless = |_| {
            reads.set(reads.get() + 1);
            Ok((vec![b'\n'; 1 << 20], 1))
        };
        assert!(refusals(endless, &some).unwrap().is_empty());
        assert_eq!(reads.get(), MAX_SEARCHED >> 20);
    }
}
