use super::*;

fn policy(reach: Reach, precedence: Precedence, allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
    Policy { reach, allow: rules(allow), deny: rules(deny), precedence }
}

fn listed(allow: &[&str], deny: &[&str]) -> Policy {
    policy(Reach::Listed, Precedence::Deny, allow, deny)
}

fn name(text: &str) -> DomainName {
    text.parse().expect("a name")
}

fn tcp(address: &str, port: u16) -> Flow {
    Flow { protocol: Protocol::Tcp, address: address.parse().expect("an address"), port }
}

fn udp(address: &str, port: u16) -> Flow {
    Flow { protocol: Protocol::Udp, ..tcp(address, port) }
}

fn shows(text: &str) -> Shown {
    Shown::Name(name(text))
}

fn is_allowed(decision: Decision<'_>) -> bool {
    matches!(decision, Decision::Allow(_))
}

#[track_caller]
fn assert_refused(decision: Decision<'_>, wanted: Refusal) {
    assert!(matches!(decision, Decision::Refuse(refusal, _) if refusal == wanted), "{decision:?}");
}

const ADDRESS: &str = "198.51.100.1";

#[test]
fn without_a_network_nothing_is_allowed_whatever_the_rules_say() {
    let policy = policy(Reach::Nothing, Precedence::Allow, &["0.0.0.0/0", "example.com", "host:80"], &[]);
    assert_refused(policy.asked(&name("example.com")), Refusal::NoNetwork);
    assert_refused(policy.begun(&tcp(ADDRESS, 443), &[name("example.com")]), Refusal::NoNetwork);
    assert_refused(policy.named(&tcp(ADDRESS, 443), &[name("example.com")], &shows("example.com")), Refusal::NoNetwork);
    assert_refused(policy.host_service(80), Refusal::NoNetwork);
}

#[test]
fn a_rule_for_a_name_holds_when_question_address_and_shown_name_agree() {
    let policy = listed(&["example.com"], &[]);
    let (flow, pinned) = (tcp(ADDRESS, 443), [name("example.com")]);
    assert!(is_allowed(policy.asked(&pinned[0])));
    assert_eq!(policy.begun(&flow, &pinned), Decision::Inspect);
    assert!(is_allowed(policy.named(&flow, &pinned, &shows("example.com"))));
}

#[test]
fn a_rule_for_a_name_fails_when_one_of_the_three_is_missing() {
    let policy = listed(&["example.com", "*.example.com"], &[]);
    let (flow, pinned) = (tcp(ADDRESS, 443), [name("example.com")]);
    // The address was not the answer to any question.
    assert_refused(policy.begun(&flow, &[]), Refusal::NotAsked);
    assert_refused(policy.named(&flow, &[], &shows("example.com")), Refusal::OtherName);
    // It was the answer to another question.
    assert_refused(policy.named(&flow, &pinned, &shows("a.example.com")), Refusal::OtherName);
    assert_refused(policy.named(&flow, &pinned, &shows("evil.example")), Refusal::OtherName);
    // The connection shows no name, or hides it.
    assert_refused(policy.named(&flow, &pinned, &Shown::Nameless), Refusal::NamelessProtocol);
    assert_refused(policy.named(&flow, &pinned, &Shown::Hidden), Refusal::HiddenName);
    // The name itself is not listed.
    assert_refused(policy.asked(&name("example.org")), Refusal::NotListed);
}

#[test]
fn protocols_without_names_need_a_rule_that_names_the_port() {
    let policy = listed(&["git.example:22"], &[]);
    let pinned = [name("git.example")];
    assert_eq!(policy.begun(&tcp(ADDRESS, 22), &pinned), Decision::Inspect);
    assert!(is_allowed(policy.named(&tcp(ADDRESS, 22), &pinned, &Shown::Nameless)));
    assert_refused(policy.begun(&tcp(ADDRESS, 443), &pinned), Refusal::NotAsked);
    // A protocol that shows names is held to them anyway.
    assert_refused(policy.named(&tcp(ADDRESS, 22), &pinned, &Shown::Hidden), Refusal::HiddenName);
    assert_refused(policy.named(&tcp(ADDRESS, 22), &pinned, &shows("evil.example")), Refusal::OtherName);
}

#[test]
fn a_rule_that_names_the_port_holds_beside_one_that_does_not() {
    for allow in [["git.example", "git.example:22"], ["*.example", "git.example:22"]] {
        let policy = listed(&allow, &[]);
        let flow = tcp("198.51.100.1", 22);
        assert!(is_allowed(policy.named(&flow, &[name("git.example")], &Shown::Nameless)), "{allow:?}");
    }
}

#[test]
fn udp_to_a_named_host_needs_a_rule_that_says_udp_and_the_port() {
    let pinned = [name("example.com")];
    assert_refused(listed(&["example.com"], &[]).begun(&udp(ADDRESS, 443), &pinned), Refusal::NotAsked);
    assert_refused(listed(&["example.com/udp"], &[]).begun(&udp(ADDRESS, 443), &pinned), Refusal::NamelessProtocol);
    assert!(is_allowed(listed(&["example.com:443/udp"], &[]).begun(&udp(ADDRESS, 443), &pinned)));
}

#[test]
fn addresses_are_allowed_without_names() {
    let policy = listed(&["198.51.100.0/24:443"], &[]);
    assert!(is_allowed(policy.begun(&tcp(ADDRESS, 443), &[])));
    assert_refused(policy.begun(&tcp(ADDRESS, 80), &[]), Refusal::NotAsked);
    assert_refused(policy.begun(&tcp("198.51.101.1", 443), &[]), Refusal::NotAsked);
    assert_refused(policy.asked(&name("example.com")), Refusal::NotListed);
}

#[test]
fn deny_rules_win_on_the_command_line_and_lose_in_e2b_lists() {
    let (allow, deny) = (&["198.51.100.1", "example.com"], &["198.51.100.0/24", "*.example.com", "example.com"]);
    let (flow, asked) = (tcp(ADDRESS, 443), name("example.com"));
    let cli = policy(Reach::Public, Precedence::Deny, allow, deny);
    assert_refused(cli.begun(&flow, &[]), Refusal::Denied);
    assert_refused(cli.asked(&asked), Refusal::Denied);
    let e2b = policy(Reach::Public, Precedence::Allow, allow, deny);
    assert!(is_allowed(e2b.begun(&flow, &[])) && is_allowed(e2b.asked(&asked)));
    assert_refused(e2b.begun(&tcp("198.51.100.2", 443), &[]), Refusal::Denied);
    assert_refused(e2b.asked(&name("a.example.com")), Refusal::Denied);
}

/// `allow_out = ["example.com"]` with `deny_out = ["0.0.0.0/0"]`, as E2B's clients write it.
#[test]
fn a_name_can_be_allowed_where_every_address_is_denied() {
    let policy = policy(Reach::Public, Precedence::Allow, &["example.com"], &["0.0.0.0/0"]);
    let (flow, pinned) = (tcp(ADDRESS, 443), [name("example.com")]);
    assert_eq!(policy.begun(&flow, &pinned), Decision::Inspect);
    assert!(is_allowed(policy.named(&flow, &pinned, &shows("example.com"))));
    assert_refused(policy.named(&flow, &pinned, &shows("evil.example")), Refusal::Denied);
    assert_refused(policy.begun(&flow, &[]), Refusal::Denied);
}

#[test]
fn a_public_policy_denies_names_by_what_connections_show() {
    let policy = policy(Reach::Public, Precedence::Deny, &[], &["*.tracker.example"]);
    let (flow, shared) = (tcp(ADDRESS, 443), [name("good.example"), name("a.tracker.example")]);
    assert_refused(policy.asked(&shared[1]), Refusal::Denied);
    assert_eq!(policy.begun(&flow, &[]), Decision::Inspect);
    assert!(is_allowed(policy.named(&flow, &shared, &shows("good.example"))));
    assert_refused(policy.named(&flow, &[], &shows("a.tracker.example")), Refusal::Denied);
    assert_refused(policy.named(&flow, &[], &Shown::Hidden), Refusal::HiddenName);
    assert_refused(policy.named(&flow, &shared, &Shown::Nameless), Refusal::Denied);
    assert!(is_allowed(policy.named(&flow, &[], &Shown::Nameless)));
}

#[test]
fn a_denied_name_is_not_reached_over_quic() {
    let policy = policy(Reach::Public, Precedence::Deny, &[], &["evil.example"]);
    // A neighbour of the denied host on the same servers would serve it by the name that QUIC hides.
    assert_refused(policy.begun(&udp(ADDRESS, 443), &[name("good.example")]), Refusal::HiddenName);
    assert_refused(policy.begun(&udp(ADDRESS, 123), &[name("evil.example")]), Refusal::Denied);
    assert!(is_allowed(policy.begun(&udp(ADDRESS, 123), &[])));
    let tcp_only = super::Policy { deny: vec!["evil.example/tcp".parse().unwrap()], ..policy };
    assert!(is_allowed(tcp_only.begun(&udp(ADDRESS, 443), &[])));
}

#[test]
fn services_of_the_host_are_reached_only_by_their_own_rule() {
    let listed = listed(&["host:5432", "0.0.0.0/0"], &[]);
    assert!(is_allowed(listed.host_service(5432)));
    assert_refused(listed.host_service(22), Refusal::NotListed);
    assert_refused(policy(Reach::Public, Precedence::Allow, &[], &[]).host_service(22), Refusal::NotListed);
}
