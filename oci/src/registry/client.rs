//! Requests to one registry or mirror: redirects and credentials. Only the origin of the registry
//! receives an `Authorization`, and only its challenges are answered.

use super::{
    RegistryOptions,
    auth::{Challenge, Credentials},
    connection::{self, Body},
    error::RegistryError,
    target::Target,
};
use crate::store::StoreError;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, HOST, HeaderName, LOCATION, WWW_AUTHENTICATE},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::OnceCell, time::timeout};
use tokio_rustls::rustls::ClientConfig;

/// Maximum number of redirects of a request.
pub(super) const MAX_REDIRECTS: usize = 5;
/// Time in which the headers of an answer have to arrive. A registry may verify a whole layer first.
pub(super) const ANSWER: Duration = Duration::from_secs(120);

/// Which credentials a host receives when it asks for some.
#[derive(Debug, Clone)]
pub(crate) enum Login {
    /// These.
    Given(Credentials),
    /// Those that are found for this name.
    Find(String),
}

/// A host that speaks the distribution specification.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) options: Arc<RegistryOptions>,
    pub(super) tls: Arc<ClientConfig>,
    /// Host, as `host` or `host:port`.
    pub(super) host: String,
    /// The registry that this host is a mirror of.
    namespace: Option<String>,
    login: Login,
    /// The credentials, after they were needed.
    credentials: OnceCell<Option<Credentials>>,
    /// Values of `Authorization` by scope.
    authorizations: Mutex<HashMap<String, String>>,
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) headers: Vec<(HeaderName, String)>,
    /// What the token has to allow, such as `repository:a/b:pull`.
    pub(super) scope: &'a str,
    /// What is requested, for messages.
    pub(super) what: &'a str,
    /// The body, unless it is a blob.
    pub(super) content: Bytes,
}

impl Client {
    pub(crate) fn new(
        options: Arc<RegistryOptions>,
        host: &str,
        namespace: Option<String>,
        login: Login,
    ) -> Result<Self, RegistryError> {
        let tls = connection::tls(&options)?;
        let (credentials, authorizations) = (OnceCell::new(), Mutex::default());
        Ok(Self { options, tls, host: host.to_owned(), namespace, login, credentials, authorizations })
    }

    /// Returns the credentials, which are read when a host asks for them first.
    pub(super) async fn credentials(&self) -> Result<Option<&Credentials>, RegistryError> {
        let find = async || -> Result<_, RegistryError> {
            match (&self.login, &self.options.credentials) {
                (Login::Given(given), _) => Ok(Some(given.clone())),
                (Login::Find(_), None) => Ok(None),
                (Login::Find(name), Some(files)) => {
                    let (name, files) = (name.clone(), files.clone());
                    let found = tokio::task::spawn_blocking(move || files.find(&name)).await;
                    Ok(found.map_err(|_| StoreError::Cancelled)??)
                }
            }
        };
        Ok(self.credentials.get_or_try_init(find).await?.as_ref())
    }

    /// Returns the target of a path below `/v2/`.
    pub(super) fn target(&self, path: &str) -> Result<Target, RegistryError> {
        let target = Target::at(&self.host, &format!("/v2/{path}"), &self.options.plain_http)?;
        Ok(match &self.namespace {
            Some(namespace) => target.with_query("ns", namespace),
            None => target,
        })
    }

    /// Returns where a location in an answer of `target` leads.
    pub(super) fn follow(&self, target: &Target, answer: &Response<Incoming>) -> Result<Target, RegistryError> {
        let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| self.answer("it has no location"))?;
        target.follow(location, &self.options.plain_http)
    }

    pub(super) fn answer(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Answer { host: self.host.clone(), problem: problem.into() }
    }

    /// Sends a request, authenticates if the registry asks for it, and follows redirects of reads.
    /// Returns an answer with any status but a redirect.
    pub(super) async fn call(&self, target: Target, call: &Call<'_>) -> Result<Response<Incoming>, RegistryError> {
        let (answer, at) = self.redirected(&target, call).await?;
        // Another host, to which the registry redirected, cannot ask for the credentials.
        if answer.status() != StatusCode::UNAUTHORIZED || !at.is_same_origin(&target) {
            return Ok(answer);
        }
        // Without a token, or with one that has expired.
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let Some(challenge) = Challenge::choose(challenges) else { return Ok(answer) };
        drop(answer);
        let authorization = self.authorization(&target, challenge, call).await?;
        self.remember(call.scope, authorization);
        Ok(self.redirected(&target, call).await?.0)
    }

    fn remember(&self, scope: &str, authorization: String) {
        let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(scope.to_owned(), authorization);
    }

    /// Returns the answer, and where it is from.
    async fn redirected(
        &self,
        target: &Target,
        call: &Call<'_>,
    ) -> Result<(Response<Incoming>, Target), RegistryError> {
        let mut at = target.clone();
        for _ in 0..=MAX_REDIRECTS {
            let sent = timeout(ANSWER, self.send(&at, target, call, full(call.content.clone()))).await;
            let answer = sent.map_err(|_| silent(&at))??;
            let is_read = call.method == Method::GET || call.method == Method::HEAD;
            if !is_read || !is_redirect(answer.status()) {
                return Ok((answer, at));
            }
            at = self.follow(&at, &answer)?;
        }
        Err(RegistryError::Redirects(self.host.clone()))
    }

    /// Sends one request to `at`. Only if that has the origin of `registry`, the credentials go
    /// with it. Does not limit the time.
    pub(super) async fn send(
        &self,
        at: &Target,
        registry: &Target,
        call: &Call<'_>,
        body: Body,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut request = Request::builder().method(&call.method).uri(&at.path).header(HOST, at.authority());
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if at.is_same_origin(registry) {
            let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(authorization) = known.get(call.scope) {
                request = request.header(AUTHORIZATION, authorization);
            }
        }
        let request = request.body(body).map_err(|error| RegistryError::Address(error.to_string()))?;
        connection::send(at, request, &self.options, &self.tls).await
    }

    pub(super) fn denied(&self, call: &Call<'_>) -> RegistryError {
        let with_credentials = self.credentials.get().is_some_and(Option::is_some);
        RegistryError::Denied { host: self.host.clone(), what: call.what.to_owned(), with_credentials }
    }

    /// Returns the error for an answer with an unexpected status.
    pub(super) fn refusal(&self, answer: &Response<Incoming>, call: &Call<'_>) -> RegistryError {
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(call),
            StatusCode::NOT_FOUND => RegistryError::NotFound { host: self.host.clone(), what: call.what.to_owned() },
            _ => self.status(answer, call.what),
        }
    }

    pub(super) fn status(&self, answer: &Response<Incoming>, what: &str) -> RegistryError {
        let status = answer.status().as_u16();
        RegistryError::Status { host: self.host.clone(), status, what: what.to_owned() }
    }
}

/// Returns true if the answer leads to another place.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns the error for a host that accepted a request and does not answer.
pub(super) fn silent(at: &Target) -> RegistryError {
    RegistryError::Unreachable { host: at.authority(), problem: "it does not answer".into() }
}

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(super) fn full(bytes: Bytes) -> Body {
    if bytes.is_empty() {
        return empty();
    }
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
