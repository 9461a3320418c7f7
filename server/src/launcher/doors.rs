//! What a token, a signature, or an open sandbox lets a request reach.

use super::Launcher;
use crate::{
    access::{
        signature::{Claim, Operation, Problem},
        tokens::Scope,
    },
    channel::{
        failure::{Failure, Why},
        opening::{self, Opening},
        paths::agent_path,
        request::{Denied, Facts, Knock, Signer, Verdict},
    },
    registry::{
        entry::{Entry, Reached},
        network::ingress::ENVD_PORT,
        record::Record,
    },
};
use sandboxvm_manager::{Answered, CText, GuestScope, InUseElsewhere, PortNumber, SandboxId};
use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::AbortOnDropHandle;

/// Searches at a time: one tries every sandbox's token, which takes a processor about a microsecond for each.
static SEARCHES: Semaphore = Semaphore::const_new(2);

/// Calls of one handle at the same time: those of one request of a client, with files on several connections.
const CALLS: usize = 256;
/// Connections on which the launcher has sent the request, at the same time: each takes three descriptors more.
const SENT: usize = 256;
/// Free places of them.
static SENDING: Semaphore = Semaphore::const_new(SENT);

/// What a request was let in for.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) scope: GuestScope,
    /// The launcher sends the request itself, with this as its host.
    pub(super) sends: Option<(Opening, String)>,
    /// The generation of the token that opened it.
    generation: Option<u32>,
    /// The expiry of the signature that opened it. Unix time in seconds.
    until: Option<u64>,
}

/// An open sandbox, under its handle.
#[derive(Debug)]
pub(super) struct Open {
    reached: Reached,
    grant: Grant,
    /// What the launcher sends itself, until it has.
    request: Mutex<Option<Vec<u8>>>,
    /// What passes the answer to that on.
    passing: OnceLock<AbortOnDropHandle<()>>,
    pub(super) calls: Arc<Semaphore>,
    /// Of the first connection: one is enough for all.
    in_use: OnceLock<InUseElsewhere>,
}

impl Launcher {
    /// May a request reach a sandbox? Except for sandboxes that want no token, the answer depends on the request and the ID in
    /// it alone, not on whether there is such a sandbox: a client without its token cannot find out.
    pub(super) fn verdict(&self, knock: &Knock) -> Verdict {
        match self.admitted(knock) {
            Err(denied) => Verdict::Denied(denied),
            Ok(None) => Verdict::NoSandbox,
            Ok(Some((record, grant))) => Verdict::Allowed(Facts {
                owner: record.owner,
                user: record.user,
                workdir: record.workdir,
                ingress: record.ingress,
                is_sent_by_launcher: grant.sends.is_some(),
            }),
        }
    }

    /// The record is read once: what is decided is decided for one state of it.
    pub(super) fn admitted(&self, knock: &Knock) -> Result<Option<(Record, Grant)>, Denied> {
        let record = self.registry.entry(&knock.id).map(|entry| entry.record());
        let grant = match (knock.port, &record) {
            (ENVD_PORT, record) => self.opens_envd(knock, record.as_ref())?,
            (_, Some(record)) => self.opens_port(knock, record)?,
            (_, None) => return Ok(None),
        };
        Ok(record.map(|record| (record, grant)))
    }

    /// It has the sandbox's token, or the signature for a file, or none is wanted.
    fn opens_envd(&self, knock: &Knock, record: Option<&Record>) -> Result<Grant, Denied> {
        let all = Grant { scope: GuestScope::All, sends: None, generation: None, until: None };
        if record.is_some_and(|record| !record.secure) {
            return Ok(all);
        }
        let generation = record.map(|record| record.token_generation);
        let wrong = if knock.is_file { Denied::WrongFileToken } else { Denied::WrongToken };
        match (&knock.token, &knock.claim) {
            (Some(token), _) if self.has_token(knock, record, token) => Ok(Grant { generation, ..all }),
            (Some(_), _) => Err(wrong),
            (None, _) if !knock.is_file => Err(Denied::NoToken),
            (None, None) => Err(Denied::NoClaim),
            (None, Some(claim)) => {
                let token = self.credentials.tokens.of(Scope::Envd, &knock.id, generation.unwrap_or(0));
                claim.check(&token, now()).map_err(denied)?;
                let scope =
                    file_scope(claim, record.map_or("", |record| &record.user)).ok_or(Denied::WrongSignature)?;
                Ok(Grant { scope, generation, until: claim.until, ..all })
            }
        }
    }

    fn opens_port(&self, knock: &Knock, record: &Record) -> Result<Grant, Denied> {
        let port = PortNumber::try_from(knock.port).map_err(|_| Denied::NoToken)?;
        let (mut sends, mut generation) = (None, None);
        if record.secure && self.config.token_ports.contains(&knock.port) {
            // To a server with TLS only a client can send: the launcher reads nothing of a guest.
            let opening = knock.opening.as_ref().filter(|it| it.is_open() && !record.ingress.is_https(knock.port));
            match (&knock.token, opening) {
                (Some(token), _) if self.has_token(knock, Some(record), token) => {
                    generation = Some(record.token_generation);
                }
                (_, Some(opening)) => {
                    let host = record.ingress.host(knock.port).unwrap_or_else(|| format!("localhost:{}", knock.port));
                    sends = Some((opening.clone(), host));
                }
                (None, None) => return Err(Denied::NoToken),
                (Some(_), None) => return Err(Denied::WrongToken),
            }
        }
        if !record.public_traffic {
            let current = Some(record.token_generation);
            match knock.traffic_token.as_deref() {
                None | Some("") => return Err(Denied::NoTrafficToken),
                Some(token) => {
                    if !self.credentials.tokens.opens(Scope::Traffic, &knock.id, current, token.as_bytes()) {
                        return Err(Denied::WrongTrafficToken);
                    }
                    generation = current;
                }
            }
        }
        Ok(Grant { scope: GuestScope::Port(port), sends, generation, until: None })
    }

    fn has_token(&self, knock: &Knock, record: Option<&Record>, token: &str) -> bool {
        let generation = record.map(|record| record.token_generation);
        self.credentials.tokens.opens(Scope::Envd, &knock.id, generation, token.as_bytes())
    }

    /// Opens a sandbox for a request that may reach it. `body` is that of a request which the launcher sends itself.
    pub(super) async fn open(&self, knock: &Knock, body: &[u8]) -> Result<Open, Failure> {
        let no_sandbox = || Failure::no_sandbox(knock.id.as_str());
        // Also what would be denied: the front asked before, and a front that did not learns nothing.
        let Ok(Some((_, grant))) = self.admitted(knock) else { return Err(no_sandbox()) };
        if body.len() > opening::MAX_BODY {
            return Err(Failure::invalid(format!("the body has more than {} bytes", opening::MAX_BODY)));
        }
        let request = grant.sends.as_ref().map(|(opening, host)| opening.request(host, body));
        let reached = self.registry.reach(&knock.id).await?;
        Ok(Open {
            reached,
            grant,
            request: Mutex::new(request),
            passing: OnceLock::new(),
            calls: Arc::new(Semaphore::new(CALLS)),
            in_use: OnceLock::new(),
        })
    }

    /// The sandbox whose token a request was signed with, of one that says in no other way which it is for: clients without a
    /// domain make such addresses. A search that is given up ends anyway, and keeps `permits` until then.
    pub(super) async fn signer(
        self: Arc<Self>,
        claim: Claim,
        permits: Vec<OwnedSemaphorePermit>,
    ) -> Result<(Signer, Vec<OwnedSemaphorePermit>), Failure> {
        let failed = || Failure::internal("cannot search for the signer");
        if !claim.is_short() {
            return Ok((Signer::Denied(Denied::WrongSignature), permits));
        }
        let turn = SEARCHES.acquire().await.map_err(|_| failed())?;
        let search = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let secured = self.registry.entries().into_iter().filter(|entry| entry.is_secure());
            let token =
                |entry: &Arc<Entry>| self.credentials.tokens.of(Scope::Envd, &entry.id, entry.token_generation());
            let signer = match (claim.signer(secured, token), claim.is_in_time(now())) {
                (None, _) => Signer::Denied(Denied::WrongSignature),
                (Some(_), Err(problem)) => Signer::Denied(denied(problem)),
                (Some(entry), Ok(())) => Signer::Found(entry.id.clone()),
            };
            (signer, permits)
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

impl Grant {
    /// What opened it opens it still: the token was not revoked, the signature has not expired.
    pub(super) fn check(&self, entry: &Entry) -> Result<(), Failure> {
        let is_current = self.generation.is_none_or(|generation| generation == entry.token_generation());
        match is_current && self.until.is_none_or(|until| until >= now()) {
            true => Ok(()),
            false => {
                Err(Failure::new(Why::Unauthorized, "the token or signature of the request is not valid any more"))
            }
        }
    }

    /// For what is about all of a sandbox.
    pub(super) fn check_whole(&self, entry: &Entry) -> Result<(), Failure> {
        match self.scope {
            GuestScope::All => self.check(entry),
            _ => Err(Failure::new(Why::Forbidden, "the request may not read this of the sandbox")),
        }
    }
}

impl Open {
    /// For what is about all of a sandbox.
    pub(super) fn whole(&self) -> Result<&Reached, Failure> {
        self.grant.check_whole(&self.reached.entry).map(|()| &self.reached)
    }

    pub(super) fn calls_of_sandbox(&self) -> &Arc<Semaphore> {
        &self.reached.entry.calls
    }

    pub(super) fn has_begun(&self) {
        self.reached.has_begun();
    }

    /// What an open connection has to say for the audit log. Also when its token was revoked: open streams stay open.
    pub(super) fn told(&self, call: &[u8]) {
        self.reached.sandbox.told(call, &self.grant.scope);
    }

    /// Answers a call about the guest, and returns the connection that the front is to have.
    pub(super) async fn call(&self, call: &[u8]) -> Result<(Vec<u8>, Option<OwnedFd>), Failure> {
        self.grant.check(&self.reached.entry)?;
        let Answered { answer, stream, in_use } = self.reached.sandbox.answer(call, &self.grant.scope).await;
        if let Some(in_use) = in_use {
            // One is kept; the others are the same.
            let _ = self.in_use.set(in_use);
        }
        match (stream, &self.grant.sends) {
            (Some(guest), Some(_)) => {
                let request = self.request.lock().unwrap_or_else(PoisonError::into_inner).take();
                let request = request.ok_or_else(|| Failure::internal("the request was sent"))?;
                let (theirs, passing) = send(&request, guest).await?;
                // The first: there is one request.
                let _ = self.passing.set(passing);
                Ok((answer, Some(theirs)))
            }
            (stream, _) => Ok((answer, stream)),
        }
    }
}

/// Sends a request to a guest. Returns a connection on which the answer arrives, and over which nothing reaches the guest.
pub(super) async fn send(request: &[u8], guest: OwnedFd) -> Result<(OwnedFd, AbortOnDropHandle<()>), Failure> {
    let failed = |error: io::Error| Failure::internal(format!("cannot send the request to the sandbox: {error}"));
    let busy = |_| Failure::new(Why::Full, "too many requests to code interpreters at the same time");
    let place = SENDING.try_acquire().map_err(busy)?;
    let guest = StdUnixStream::from(guest);
    guest.set_nonblocking(true).map_err(failed)?;
    let mut guest = UnixStream::from_std(guest).map_err(failed)?;
    guest.write_all(request).await.map_err(failed)?;
    let (theirs, ours) = StdUnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let ours = UnixStream::from_std(ours).map_err(failed)?;
    let passing = tokio::spawn(async move {
        let _place = place;
        // The guest's other half is kept: servers take its end for that of their client.
        let ((mut written, mut answered), (mut answers, _kept)) = (ours.into_split(), guest.into_split());
        let mut nowhere = tokio::io::sink();
        tokio::select! {
            // Either may end at any moment.
            _ = tokio::io::copy(&mut answers, &mut answered) => {}
            // What the front writes is dropped; its end says that it has gone.
            _ = tokio::io::copy(&mut written, &mut nowhere) => {}
        }
    });
    Ok((theirs.into(), AbortOnDropHandle::new(passing)))
}

/// What a signature allows: one path, unless it was made for an upload whose parts say where they go.
fn file_scope(claim: &Claim, default_user: &str) -> Option<GuestScope> {
    let user = if claim.user.is_empty() { default_user } else { &claim.user };
    let user = CText::try_from(user).ok()?;
    let path = agent_path(&claim.path).ok()?;
    Some(match claim.operation {
        Operation::Read => GuestScope::ReadFile { path, user },
        Operation::Write => GuestScope::WriteFile { path: Some(path).filter(|_| !claim.path.is_empty()), user },
    })
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
