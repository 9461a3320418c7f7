//! One request and its answer, in either version of HTTP.

use super::body::{Found, Gate, Searched};
use crate::{
    credentials::{
        Credentials,
        aws::{self, Payload},
        head::{Prepared, prepare, remove_hop_by_hop},
        placeholders::Scan,
        verdict::{About, Rejected, Target},
    },
    session::{Session, refused},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body, Incoming},
    header::{self, HeaderValue},
    http::uri::Authority,
};
use sandboxvm_protocol::egress::{BlockedSecret, FlowEnd, FlowRecord, Transport};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::timeout;

/// Maximum length of a name that is recorded.
const MAX_NAME: usize = 255;

/// Maximum length of a body that is read as a whole because its signature has its hash.
const MAX_HASHED: usize = 8 << 20;

/// Maximum number of such bodies of a sandbox that are in memory at the same time.
const MAX_HASHING: usize = 4;

/// Maximum time in which such a body has to arrive.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// The body of an answer.
pub(super) type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// What the requests of one connection have in common.
pub(super) struct Exchange {
    target: Target,
    session: Rc<RefCell<Session>>,
}

/// A request as it is forwarded.
pub(super) struct Forwarded {
    pub request: Request<Searched>,
    pub prepared: Prepared,
    /// Set when the body is cut off.
    pub found: Found,
}

impl Exchange {
    pub(super) fn new(target: Target, session: Rc<RefCell<Session>>) -> Self {
        Self { target, session }
    }

    /// Returns the request that is forwarded, or the answer to one that is not. The rules and secrets are those of now.
    pub(super) async fn forwarded(&self, request: Request<Incoming>) -> Result<Forwarded, Box<Answer>> {
        let credentials = Rc::clone(&self.session.borrow().credentials);
        let (mut head, body) = request.into_parts();
        let named = named(&head.uri, &head.headers);
        let reject = |rejected: Rejected| Box::new(self.reject(&rejected, named.clone(), &credentials));
        let mut prepared = prepare(&mut head, &self.target, &credentials).map_err(reject)?;
        if let Some(unsigned) = prepared.unsigned.take() {
            match unsigned.payload(&head.headers).map_err(reject)? {
                Payload::Stated(payload) => unsigned.sign(&mut head, &payload, &credentials).map_err(reject)?,
                Payload::Hash => {
                    let body = self.read(body, &credentials, reject).await?;
                    head.headers.remove(header::EXPECT);
                    prepared.waits = false;
                    unsigned.sign(&mut head, &aws::hash(&body), &credentials).map_err(reject)?;
                    let (scan, found) = (Scan::new(credentials.placeholders()), Found::default());
                    let body = Searched::whole(body, scan, Rc::clone(&found));
                    return Ok(Forwarded { request: Request::from_parts(head, body), prepared, found });
                }
            }
        }
        let is_http_1 = head.version != Version::HTTP_2;
        let (found, mut gate) = (Found::default(), Gate::Open);
        let mut request = Request::from_parts(head, ());
        if prepared.waits && is_http_1 {
            let (waiting, open) = Gate::waiting();
            let open = Mutex::new(Some(open));
            hyper::ext::on_informational(&mut request, move |answer| {
                if answer.status() == StatusCode::CONTINUE
                    && let Some(open) = open.lock().ok().and_then(|mut open| open.take())
                {
                    // The body is gone if the guest is.
                    let _ = open.send(());
                }
            });
            gate = waiting;
        }
        let body = Searched::new(body, Scan::new(credentials.placeholders()), Rc::clone(&found), gate);
        Ok(Forwarded { request: request.map(|()| body), prepared, found })
    }

    /// Reads the body of a request that is signed.
    async fn read(
        &self,
        body: Incoming,
        credentials: &Credentials,
        reject: impl Fn(Rejected) -> Box<Answer>,
    ) -> Result<Bytes, Box<Answer>> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let refuse = |reason| reject(aws::unsignable(reason));
        let hashing = Arc::clone(&self.session.borrow().hashing);
        // This and the session have one each.
        if Arc::strong_count(&hashing) > MAX_HASHING + 1 {
            return Err(refuse("too many requests with bodies are signed at the same time"));
        }
        let found = Found::default();
        let searched = Searched::new(body, Scan::new(credentials.placeholders()), Rc::clone(&found), Gate::Open);
        let Ok(read) = timeout(READ_WITHIN, searched.read(MAX_HASHED, hashing)).await else {
            return Err(reject(aws::late()));
        };
        match read {
            Ok(Some(body)) => Ok(body),
            Ok(None) => Err(refuse("the body of a request that is signed with its hash is longer than 8 MiB")),
            Err(_) => {
                Err(self.failed(&found).map_or_else(|| refuse("the body of the request is not complete"), Box::new))
            }
        }
    }

    /// Returns the server's answer for the guest.
    pub(super) fn answered(mut answer: Response<Incoming>) -> Answer {
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            remove_hop_by_hop(answer.headers_mut());
        }
        answer.map(BodyExt::boxed_unsync)
    }

    /// Returns the answer to a request that failed, if the guest is to get one: the body had a placeholder in it.
    pub(super) fn failed(&self, found: &Cell<Option<usize>>) -> Option<Answer> {
        let rejected = Rejected::secret(found.get()?, "the body contains the placeholder of a secret");
        let credentials = Rc::clone(&self.session.borrow().credentials);
        Some(self.reject(&rejected, None, &credentials))
    }

    fn reject(&self, rejected: &Rejected, named: Option<String>, credentials: &Credentials) -> Answer {
        let mut session = self.session.borrow_mut();
        match rejected.about {
            About::Secret(position) => session.records.blocked(BlockedSecret {
                secret: credentials.secret_name(position).to_owned(),
                host: self.target.name.to_string(),
                reason: rejected.reason.to_owned(),
            }),
            About::Host | About::Nothing => session.records.flow(FlowRecord {
                transport: Transport::Tcp,
                name: named.or_else(|| Some(self.target.name.to_string())),
                address: self.target.address,
                port: self.target.port,
                decided: refused(rejected.reason),
                bytes_out: 0,
                bytes_in: 0,
                millis: 0,
                end: FlowEnd::NotEstablished,
                count: 1,
            }),
        }
        session.counters.refused += 1;
        answer(rejected.status, rejected.reason)
    }
}

/// Returns an answer of sandboxvm itself.
pub(super) fn answer(status: StatusCode, reason: &str) -> Answer {
    let body = Full::new(Bytes::from(format!("sandboxvm: {reason}\n")));
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// Returns the host that a request names, as it is recorded.
fn named(uri: &hyper::Uri, headers: &hyper::HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let host = uri.authority().cloned().or(host)?;
    Some(host.host().chars().take(MAX_NAME).collect())
}
