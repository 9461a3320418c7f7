//! Which addresses a dialer connects to: those above the floor, the resolvers, and the listed ports of the host. The
//! egress process decided by the policy before, and may have been taken over since: what is refused here is refused
//! whatever it says.

use super::{
    host::{HostError, Routing, Way},
    proxy::Handshake,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sandboxvm_egress_policy::floor::Floor;
use sandboxvm_protocol::egress::{Dial, DialFailure, DialerSettings, ResolverTransport, UpstreamProxy};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

/// How long the host's networks are taken as known.
const REFRESH: Duration = Duration::from_secs(3);

/// Port of a resolver of the tenant.
const DNS: u16 = 53;

/// What to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// TCP, and what to try when nothing listens there.
    Tcp(SocketAddr, Option<SocketAddr>),
    /// TCP to a proxy, which is then asked for the connection.
    Proxied(SocketAddr, Box<Handshake>),
    /// UDP.
    Udp(SocketAddr),
    /// ICMP echo.
    Echo(IpAddr),
}

/// What may be reached.
#[derive(Debug)]
pub struct Reachable {
    routing: Routing,
    opened: Vec<IpNet>,
    resolvers: Vec<SocketAddr>,
    proxy: Option<UpstreamProxy>,
    settings: DialerSettings,
    floor: Floor,
    /// When the floor was made of the host's networks.
    made: Instant,
}

impl Reachable {
    /// Returns what may be reached. `opened` and `resolvers` are the operator's. With a proxy, only resolvers and services of
    /// the host are reached without it.
    ///
    /// # Errors
    /// When the host's networks are not known.
    pub fn new(
        opened: Vec<IpNet>,
        resolvers: Vec<SocketAddr>,
        proxy: Option<UpstreamProxy>,
        settings: DialerSettings,
        now: Instant,
    ) -> Result<Self, HostError> {
        let mut routing = Routing::new()?;
        let floor = Floor::new(routing.networks()?, opened.clone());
        Ok(Self { routing, opened, resolvers, proxy, settings, floor, made: now })
    }

    /// Replaces what can change.
    pub fn configure(&mut self, settings: DialerSettings) {
        self.settings = settings;
    }

    /// Returns what to connect to.
    ///
    /// # Errors
    /// [`DialFailure::Forbidden`], [`DialFailure::Unreachable`], [`DialFailure::NotProxied`], [`DialFailure::ProxyForbidden`],
    /// and [`DialFailure::Busy`] if it cannot be decided now.
    pub fn target(&mut self, dial: Dial, now: Instant) -> Result<Target, DialFailure> {
        match dial {
            Dial::Tcp(address, port) => match self.proxy.clone() {
                Some(proxy) => self.proxied(&proxy, address, port, now),
                None => Ok(Target::Tcp(self.above_floor(address, port, now)?, None)),
            },
            // Around the proxy, they would reach what it may be there to keep apart.
            Dial::Udp(..) | Dial::Echo(_) if self.proxy.is_some() => Err(DialFailure::NotProxied),
            Dial::Udp(address, port) => Ok(Target::Udp(self.above_floor(address, port, now)?)),
            Dial::Echo(address) => Ok(Target::Echo(self.checked(address, now)?)),
            Dial::Resolver(place, transport) => {
                let resolver = self.resolver(usize::from(place), now)?;
                Ok(match transport {
                    ResolverTransport::Udp => Target::Udp(resolver),
                    ResolverTransport::Tcp => Target::Tcp(resolver, None),
                })
            }
            Dial::HostPort(port) if port != 0 && self.settings.host_ports.contains(&port) => {
                let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
                Ok(Target::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Some(v6)))
            }
            Dial::HostPort(_) => Err(DialFailure::Forbidden),
        }
    }

    fn proxied(
        &mut self,
        proxy: &UpstreamProxy,
        address: IpAddr,
        port: u16,
        now: Instant,
    ) -> Result<Target, DialFailure> {
        let to = match self.above_floor(address, port, now) {
            // Only the proxy needs a route to it.
            Err(DialFailure::Unreachable) => SocketAddr::new(self.plain(address)?, port),
            to => to?,
        };
        let UpstreamProxy { address: at, is_operators, .. } = *proxy;
        let at = match is_operators {
            true => at,
            false => self.above_floor(at.ip(), at.port(), now).map_err(|failure| match failure {
                DialFailure::Forbidden => DialFailure::ProxyForbidden,
                DialFailure::Busy => DialFailure::Busy,
                _ => DialFailure::ProxyUnreachable,
            })?,
        };
        Ok(Target::Proxied(at, Box::new(Handshake::new(proxy, to))))
    }

    fn resolver(&mut self, place: usize, now: Instant) -> Result<SocketAddr, DialFailure> {
        if self.settings.tenant_resolvers.is_empty() {
            // The operator's may be anywhere, also on the host.
            return self.resolvers.get(place).copied().ok_or(DialFailure::Forbidden);
        }
        let address = self.settings.tenant_resolvers.get(place).copied().ok_or(DialFailure::Forbidden)?;
        self.above_floor(address, DNS, now)
    }

    fn above_floor(&mut self, address: IpAddr, port: u16, now: Instant) -> Result<SocketAddr, DialFailure> {
        if port == 0 {
            return Err(DialFailure::Forbidden);
        }
        self.checked(address, now).map(|address| SocketAddr::new(address, port))
    }

    /// Returns the plain form of an address that is above the floor.
    fn plain(&self, address: IpAddr) -> Result<IpAddr, DialFailure> {
        let plain = self.floor.check(address).map_err(|_| DialFailure::Forbidden)?;
        // The operator can open everything by one network, and does not mean these.
        match plain.is_loopback() || plain.is_unspecified() || plain.is_multicast() {
            true => Err(DialFailure::Forbidden),
            false => Ok(plain),
        }
    }

    /// Returns the plain form of an address that a sandbox may reach.
    fn checked(&mut self, address: IpAddr, now: Instant) -> Result<IpAddr, DialFailure> {
        // What cannot be known now is refused.
        let unknown = |_: HostError| DialFailure::Busy;
        if now.saturating_duration_since(self.made) >= REFRESH {
            self.floor = Floor::new(self.routing.networks().map_err(unknown)?, self.opened.clone());
            self.made = now;
        }
        let plain = self.plain(address)?;
        match self.routing.way(plain).map_err(unknown)? {
            Way::Away => Ok(plain),
            // A network that the operator opened leaves out the host's addresses in it. One address is opened by itself.
            Way::Here if self.opened.contains(&only(plain)) => Ok(plain),
            Way::Here => Err(DialFailure::Forbidden),
            Way::None => Err(DialFailure::Unreachable),
        }
    }
}

/// The network of one address.
fn only(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(v4) => Ipv4Net::from(v4).into(),
        IpAddr::V6(v6) => Ipv6Net::from(v6).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reachable(opened: &[&str], settings: DialerSettings) -> Reachable {
        let opened = opened.iter().map(|net| net.parse().unwrap()).collect();
        let resolvers = vec!["127.0.0.53:53".parse().unwrap(), "10.0.0.1:5353".parse().unwrap()];
        Reachable::new(opened, resolvers, None, settings, Instant::now()).unwrap()
    }

    fn proxied(at: &str, is_operators: bool, opened: &[&str]) -> Reachable {
        let protocol = sandboxvm_protocol::egress::ProxyProtocol::Socks5;
        let proxy = UpstreamProxy { protocol, address: at.parse().unwrap(), login: None, is_operators };
        Reachable {
            proxy: Some(proxy),
            ..reachable(opened, DialerSettings { host_ports: vec![22], ..Default::default() })
        }
    }

    fn target(reachable: &mut Reachable, dial: Dial) -> Result<Target, DialFailure> {
        reachable.target(dial, Instant::now())
    }

    #[test]
    fn loopback_is_forbidden_even_if_everything_is_opened() {
        let mut reachable = reachable(&["0.0.0.0/0", "::/0", "127.0.0.1/32"], DialerSettings::default());
        for address in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "224.0.0.1"] {
            let address = address.parse().unwrap();
            for dial in [Dial::Tcp(address, 22), Dial::Udp(address, 22), Dial::Echo(address)] {
                let refused = target(&mut reachable, dial);
                assert!(
                    matches!(refused, Err(DialFailure::Forbidden | DialFailure::Unreachable)),
                    "{dial:?} {refused:?}"
                );
            }
        }
    }

    #[test]
    fn with_a_proxy_nothing_but_resolvers_and_services_of_the_host_is_reached_without_it() {
        let mut reachable = proxied("127.0.0.1:1080", true, &[]);
        let public = "1.1.1.1".parse().unwrap();
        let Ok(Target::Proxied(at, handshake)) = target(&mut reachable, Dial::Tcp(public, 443)) else { panic!() };
        assert_eq!(at, "127.0.0.1:1080".parse().unwrap());
        assert!(format!("{handshake:?}").contains("1.1.1.1:443"));
        for dial in [Dial::Udp(public, 443), Dial::Echo(public)] {
            assert_eq!(target(&mut reachable, dial), Err(DialFailure::NotProxied));
        }
        for below in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1"] {
            let dial = Dial::Tcp(below.parse().unwrap(), 443);
            assert_eq!(target(&mut reachable, dial), Err(DialFailure::Forbidden), "{below}");
        }
        assert!(matches!(target(&mut reachable, Dial::HostPort(22)), Ok(Target::Tcp(..))));
        let resolver = target(&mut reachable, Dial::Resolver(0, ResolverTransport::Udp));
        assert!(matches!(resolver, Ok(Target::Udp(_))));
    }

    #[test]
    fn proxy_of_a_tenant_is_held_to_the_floor() {
        for at in ["127.0.0.1:1080", "10.0.0.1:1080", "[::1]:1080", "169.254.169.254:80", "1.1.1.1:0"] {
            let mut tenants = proxied(at, false, &["127.0.0.0/8"]);
            let refused = target(&mut tenants, Dial::Tcp("1.1.1.1".parse().unwrap(), 443));
            assert_eq!(refused, Err(DialFailure::ProxyForbidden), "{at}");
        }
    }

    #[test]
    fn only_listed_ports_of_the_host_are_dialled() {
        let settings = DialerSettings { host_ports: vec![5432, 0], ..DialerSettings::default() };
        let mut reachable = reachable(&[], settings);
        assert!(target(&mut reachable, Dial::HostPort(5432)).is_ok());
        for port in [0, 22, 5431] {
            assert_eq!(target(&mut reachable, Dial::HostPort(port)), Err(DialFailure::Forbidden));
        }
        reachable.configure(DialerSettings::default());
        assert_eq!(target(&mut reachable, Dial::HostPort(5432)), Err(DialFailure::Forbidden));
    }

    #[test]
    fn resolvers_of_the_operator_may_be_anywhere_and_those_of_the_tenant_may_not() {
        let mut operators = reachable(&[], DialerSettings::default());
        let udp = |place| Dial::Resolver(place, ResolverTransport::Udp);
        let known = target(&mut operators, udp(0));
        assert_eq!(known, Ok(Target::Udp("127.0.0.53:53".parse().unwrap())));
        let tcp = target(&mut operators, Dial::Resolver(1, ResolverTransport::Tcp));
        assert_eq!(tcp, Ok(Target::Tcp("10.0.0.1:5353".parse().unwrap(), None)));
        assert_eq!(target(&mut operators, udp(2)), Err(DialFailure::Forbidden));
        let own = ["127.0.0.53", "10.0.0.1", "169.254.169.254"].map(|address| address.parse().unwrap());
        operators.configure(DialerSettings { tenant_resolvers: own.to_vec(), ..DialerSettings::default() });
        for place in 0..4 {
            assert_eq!(target(&mut operators, udp(place)), Err(DialFailure::Forbidden), "{place}");
        }
    }
}
