"""The network of sandboxes: what a client asks for, reads back and changes later. Exits with 0 if
all is as with E2B. No connection is made. The server's default is the public internet, and it
permits no other resolvers."""

from e2b import ALL_TRAFFIC, NotFoundException, Sandbox, SandboxException
from expect import raises


def refusal(status, call):
    error = raises(SandboxException, call)
    assert error.status_code == status, error
    return str(error)


def network(sandbox):
    info = sandbox.get_info()
    return info.allow_internet_access, info.network


made = []
try:
    lists = {
        "allow_out": ["api.example.com", "*.corp.example", "1.1.1.1", "8.8.8.0/24"],
        "deny_out": [ALL_TRAFFIC],
        "allow_public_traffic": False,
    }
    sandbox = Sandbox.create(timeout=900, allow_internet_access=True, network=lists)
    made.append(sandbox)
    assert network(sandbox) == (True, lists), network(sandbox)
    assert sandbox.traffic_access_token

    # An update replaces all of it, and what it leaves out is cleared.
    sandbox.update_network({"deny_out": ["8.8.8.8", "10.0.0.0/8"], "allow_internet_access": False})
    assert network(sandbox) == (False, {"deny_out": ["8.8.8.8", "10.0.0.0/8"], "allow_public_traffic": False})
    changed = network(sandbox)

    # What is refused changes nothing.
    denied = refusal(400, lambda: sandbox.update_network({"deny_out": ["not-a-cidr"]}))
    assert "invalid denied CIDR not-a-cidr" in denied, denied
    domains = refusal(400, lambda: sandbox.update_network({"allow_out": ["api.example.com"]}))
    assert (
        "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other "
        "traffic." in domains
    ), domains
    resolvers = refusal(403, lambda: sandbox.update_network({"dns_servers": ["1.1.1.1"]}))
    assert "the operator does not permit resolvers other than its own" in resolvers, resolvers
    marker = [{"transform": {"headers": {"Authorization": "Bearer ${e2b.secrets.KEY}"}}}]
    rules = refusal(501, lambda: sandbox.update_network({"rules": {"api.example.com": marker}}))
    assert "tokens and secrets that E2B keeps are not supported by sandboxvm" in rules, rules
    framing = [{"transform": {"headers": {"Host": "other.example.com"}}}]
    host = refusal(400, lambda: sandbox.update_network({"rules": {"api.example.com": framing}}))
    assert '"Host" is not a header that can be set' in host, host
    over_tls = {"address": "proxy.example.com:1080", "tls": True}
    refusal(501, lambda: sandbox.update_network({"egress_proxy": over_tls}))
    assert network(sandbox) == changed
    raises(NotFoundException, lambda: Sandbox.update_network("aaaaaaaaaaaaaaaa", {}))

    # A copy inherits it, a pause keeps it, and a paused sandbox can be changed.
    copy = sandbox.fork(timeout=900)[0]
    made.append(copy)
    assert network(copy) == changed
    sandbox.update_network({})
    assert network(sandbox) == (None, {"allow_public_traffic": False}) and network(copy) == changed
    assert copy.pause()
    copy.update_network({"allow_out": ["1.1.1.1"], "deny_out": [ALL_TRAFFIC]})
    copy.connect(timeout=900)
    assert network(copy) == (
        None,
        {"allow_out": ["1.1.1.1"], "deny_out": [ALL_TRAFFIC], "allow_public_traffic": False},
    )

    for wrong in ({"deny_out": ["a.example"]}, {"allow_out": ["host:22"], "deny_out": [ALL_TRAFFIC]}):
        refusal(400, lambda: Sandbox.create(network=wrong))
finally:
    for one in made:
        one.kill()
