//! The resolver.

use crate::{dialing::Dialing, session::Session};
use sandboxvm_protocol::egress::ResolverTransport;
use std::{cell::RefCell, rc::Rc};

/// The resolver of a sandbox.
#[derive(Debug)]
pub struct Resolver {
    _dialing: Rc<Dialing>,
    _session: Rc<RefCell<Session>>,
}

impl Resolver {
    /// Returns the resolver.
    #[must_use]
    pub fn new(dialing: Rc<Dialing>, session: Rc<RefCell<Session>>) -> Self {
        Self { _dialing: dialing, _session: session }
    }

    /// Answers one query of the guest, as it came. None: no answer at all (not a query).
    pub async fn answer(&self, query: &[u8], _over: ResolverTransport) -> Option<Vec<u8>> {
        let mut answer = query.to_vec();
        let [_, _, flags, code, ..] = &mut answer[..] else { return None };
        (*flags, *code) = (*flags | 0x80, 5);
        Some(answer)
    }
}
