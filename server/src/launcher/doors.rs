//! What a token, a signature, or an open sandbox lets a request reach.

use super::Launcher;
use crate::{
    access::{
        signature::{Claim, Operation, Problem},
        tokens::Scope,
    },
    channel::{
        failure::Failure,
        request::{Denied, Facts, Knock, Signer, Verdict},
    },
    registry::{
        entry::{Entry, Reached},
        ingress::ENVD_PORT,
    },
};
use sandboxvm_manager::{GuestScope, InUseElsewhere, PortNumber, SandboxId};
use std::{
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::Semaphore;

/// Searches at a time: one tries every sandbox's token, which takes a processor about a microsecond for each.
static SEARCHES: Semaphore = Semaphore::const_new(2);

/// An open sandbox, under its handle.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) reached: Reached,
    pub(super) scope: GuestScope,
    /// Of the first connection: one is enough for all.
    pub(super) in_use: OnceLock<InUseElsewhere>,
}

impl Launcher {
    /// May a request reach a sandbox? Except for sandboxes that want no token, the answer depends on the request and the ID in
    /// it alone, not on whether there is such a sandbox: a client without its token cannot find out.
    pub(super) fn verdict(&self, knock: &Knock) -> Verdict {
        let entry = self.registry.entry(&knock.id);
        let allowed = match (knock.port, &entry) {
            (ENVD_PORT, entry) => self.opens_envd(knock, entry.as_deref()),
            (_, Some(entry)) => self.opens_port(knock, entry),
            (_, None) => Ok(()),
        };
        match (allowed, entry) {
            (Err(denied), _) => Verdict::Denied(denied),
            (Ok(()), None) => Verdict::NoSandbox,
            (Ok(()), Some(entry)) => {
                let record = entry.record();
                Verdict::Allowed(Facts { owner: record.owner, user: record.user, ingress: record.ingress })
            }
        }
    }

    /// It has the sandbox's token, or the signature for a file, or none is wanted.
    fn opens_envd(&self, knock: &Knock, entry: Option<&Entry>) -> Result<(), Denied> {
        if entry.is_some_and(|entry| !entry.is_secure()) {
            return Ok(());
        }
        let wrong = if knock.is_file { Denied::WrongFileToken } else { Denied::WrongToken };
        match (&knock.token, &knock.claim) {
            (Some(token), _) if self.has_token(knock, entry, token) => Ok(()),
            (Some(_), _) => Err(wrong),
            (None, _) if !knock.is_file => Err(Denied::NoToken),
            (None, None) => Err(Denied::NoClaim),
            (None, Some(claim)) => {
                let generation = entry.map_or(0, Entry::token_generation);
                let token = self.credentials.tokens.of(Scope::Envd, &knock.id, generation);
                claim.check(&token, now()).map_err(denied)
            }
        }
    }

    fn opens_port(&self, knock: &Knock, entry: &Entry) -> Result<(), Denied> {
        let record = entry.record();
        if record.secure && self.config.token_ports.contains(&knock.port) && !knock.path_is_open {
            match &knock.token {
                None => return Err(Denied::NoToken),
                Some(token) if !self.has_token(knock, Some(entry), token) => return Err(Denied::WrongToken),
                Some(_) => {}
            }
        }
        if record.public_traffic {
            return Ok(());
        }
        let generation = Some(record.token_generation);
        match knock.traffic_token.as_deref() {
            None | Some("") => Err(Denied::NoTrafficToken),
            Some(token) => {
                match self.credentials.tokens.opens(Scope::Traffic, &knock.id, generation, token.as_bytes()) {
                    true => Ok(()),
                    false => Err(Denied::WrongTrafficToken),
                }
            }
        }
    }

    fn has_token(&self, knock: &Knock, entry: Option<&Entry>, token: &str) -> bool {
        let generation = entry.map(Entry::token_generation);
        self.credentials.tokens.opens(Scope::Envd, &knock.id, generation, token.as_bytes())
    }

    /// Opens a sandbox for a request that may reach it.
    pub(super) async fn open(&self, knock: &Knock) -> Result<Open, Failure> {
        let no_sandbox = || Failure::no_sandbox(knock.id.as_str());
        // Also what would be denied: the front asked before, and a front that did not learns nothing.
        let Verdict::Allowed(_) = self.verdict(knock) else { return Err(no_sandbox()) };
        let scope = match (knock.port, &knock.token, &knock.claim) {
            (ENVD_PORT, None, Some(claim)) if self.registry.entry(&knock.id).is_some_and(|entry| entry.is_secure()) => {
                match claim.operation {
                    Operation::Read => GuestScope::ReadFiles,
                    Operation::Write => GuestScope::WriteFiles,
                }
            }
            (ENVD_PORT, _, _) => GuestScope::All,
            (port, _, _) => GuestScope::Port(PortNumber::try_from(port).map_err(|_| no_sandbox())?),
        };
        let reached = self.registry.reach(&knock.id).await?;
        Ok(Open { reached, scope, in_use: OnceLock::new() })
    }

    /// The sandbox whose token a request was signed with, of one that says in no other way which it is for: clients without a
    /// domain make such addresses.
    pub(super) async fn signer(self: Arc<Self>, claim: Claim) -> Result<Signer, Failure> {
        let failed = || Failure::internal("cannot search for the signer");
        let _turn = SEARCHES.acquire().await.map_err(|_| failed())?;
        let search = tokio::task::spawn_blocking(move || {
            let secured = self.registry.entries().into_iter().filter(|entry| entry.is_secure());
            let token =
                |entry: &Arc<Entry>| self.credentials.tokens.of(Scope::Envd, &entry.id, entry.token_generation());
            match (claim.signer(secured, token), claim.is_in_time(now())) {
                (None, _) => Signer::Denied(Denied::WrongSignature),
                (Some(_), Err(problem)) => Signer::Denied(denied(problem)),
                (Some(entry), Ok(())) => Signer::Found(entry.id.clone()),
            }
        });
        search.await.map_err(|_| failed())
    }

    pub(super) fn runs(&self, id: &SandboxId) -> bool {
        self.registry.entry(id).is_some_and(|entry| {
            let sandbox = self.registry.manager.find(id.as_str());
            !entry.record().is_paused()
                && sandbox.is_ok_and(|sandbox| sandbox.state().is_ok_and(|state| state.is_live()))
        })
    }
}

fn denied(problem: Problem) -> Denied {
    match problem {
        Problem::Signature => Denied::WrongSignature,
        Problem::Expired => Denied::Expired,
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
