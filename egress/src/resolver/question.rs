//! What a guest asks.

use domain::base::{Name, ToName, iana::Rtype};
use sandboxvm_egress_policy::name::DomainName;

/// A name on the wire, as it was written.
pub type WireName = Name<Vec<u8>>;

/// A question that can be decided.
#[derive(Debug, Clone)]
pub struct Query {
    /// ID of the query.
    pub id: u16,
    /// Whether recursion is desired: the answer has it too.
    pub recursion: bool,
    /// The name as the guest wrote it.
    pub wire_name: WireName,
    /// The name in its normal form.
    pub name: DomainName,
    /// Type.
    pub rtype: Rtype,
    /// How the answer goes back.
    pub form: Form,
}

/// What an answer must fit, and whether it may have EDNS options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Longest answer in bytes.
    pub limit: usize,
    /// The query had EDNS.
    pub has_edns: bool,
}

/// Returns the name in its normal form. A dot in a label would read as two labels.
#[must_use]
pub fn normal_form(name: &impl ToName) -> Option<DomainName> {
    let mut text = Vec::new();
    for label in name.iter_labels().filter(|label| !label.is_root()) {
        if label.as_slice().contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(label.as_slice());
    }
    DomainName::parse(&text).ok()
}
