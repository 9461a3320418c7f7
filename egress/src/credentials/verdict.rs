//! The target by which a request is judged, and why one is rejected. Data only: other modules decide.

use hyper::StatusCode;
use sandboxvm_egress_policy::name::DomainName;
use std::net::IpAddr;

/// The host that a connection was allowed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name: that of the ClientHello, which is pinned to the address.
    pub name: DomainName,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// Why a request is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The status of the answer.
    pub status: StatusCode,
    /// Why, for the guest and for the record.
    pub reason: &'static str,
    /// What is recorded.
    pub about: About,
}

/// What a rejected request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// A placeholder of the secret at this position.
    Secret(usize),
    /// Another host.
    Host,
    /// Nothing of interest.
    Nothing,
}

impl Rejected {
    /// A placeholder is where it may not be.
    #[must_use]
    pub fn secret(position: usize, reason: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, reason, about: About::Secret(position) }
    }

    /// A request is for another host, or says none.
    pub(super) fn host(reason: &'static str) -> Self {
        Self { status: StatusCode::MISDIRECTED_REQUEST, reason, about: About::Host }
    }
}
