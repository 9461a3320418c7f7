//! Search for placeholders of secrets in what a guest sends where TLS is not ended. A secret never gets there, so a
//! placeholder shows a client that is set up wrongly, or a request that was to carry the secret elsewhere.

use super::account::Account;
use crate::{credentials::placeholders::Scan, session::refused};
use sandboxvm_protocol::egress::BlockedSecret;
use std::{cell::RefCell, io};

/// Number of bytes that are searched of a connection whose protocol is not known.
pub const FIRST_BYTES: u64 = 64 * 1024;

/// The search in what one connection sends. It costs nothing in a sandbox without secrets.
#[derive(Debug)]
pub struct Watch(Option<RefCell<State>>);

#[derive(Debug)]
struct State {
    scan: Scan,
    /// Bytes that are still to be searched.
    left: u64,
    /// Bytes that were searched, and have not passed yet: they come again.
    ahead: usize,
}

impl Watch {
    /// Begins a search in the first `left` bytes of a connection.
    #[must_use]
    pub fn new(account: &Account, left: u64) -> Self {
        let placeholders = account.session().borrow().credentials.placeholders();
        let state = |placeholders| RefCell::new(State { scan: Scan::new(placeholders), left, ahead: 0 });
        Self((!placeholders.is_empty()).then_some(placeholders).map(state))
    }

    /// Searches all that follows.
    pub fn unlimited(&self) {
        if let Some(state) = &self.0 {
            state.borrow_mut().left = u64::MAX;
        }
    }

    /// Searches bytes before they pass.
    ///
    /// # Errors
    /// When a placeholder is in them. It is recorded, and the connection has to end.
    pub fn look(&self, bytes: &[u8], account: &Account) -> io::Result<()> {
        let Some(state) = &self.0 else { return Ok(()) };
        let mut state = state.borrow_mut();
        let new = bytes.get(state.ahead..).unwrap_or_default();
        if new.is_empty() || state.left == 0 {
            return Ok(());
        }
        let found = state.scan.feed(new);
        state.left = state.left.saturating_sub(new.len() as u64);
        state.ahead = bytes.len();
        let Some(position) = found else { return Ok(()) };
        let reason = "the placeholder of a secret is in a connection whose TLS is not ended";
        let mut session = account.session().borrow_mut();
        let secret = session.credentials.secret_name(position).to_owned();
        let name = account.known.borrow().name.as_ref().map(ToString::to_string);
        let host = name.unwrap_or_else(|| account.key.address.to_string());
        session.records.blocked(BlockedSecret { secret, host, reason: reason.to_owned() });
        *account.decided.borrow_mut() = refused(reason);
        Err(io::Error::other(reason))
    }

    /// Notes how many of the bytes passed.
    pub fn passed(&self, count: usize) {
        if let Some(state) = &self.0 {
            let mut state = state.borrow_mut();
            state.ahead = state.ahead.saturating_sub(count);
        }
    }
}
