//! Requests to one registry or mirror: redirects, credentials and tokens.

use super::{
    RegistryOptions,
    auth::{Challenge, Credentials},
    connection::{self, Body},
    error::RegistryError,
    target::Target,
};
use crate::manifest::printable;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, HOST, HeaderName, LOCATION, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;

/// Maximum number of redirects of a request.
const MAX_REDIRECTS: usize = 5;
/// Maximum size in bytes of the answer of a token service.
const MAX_TOKEN: usize = 256 << 10;
/// Time in which the headers of an answer have to arrive. A registry may verify a whole layer first.
const ANSWER: Duration = Duration::from_secs(120);

/// A host that speaks the distribution specification.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) options: Arc<RegistryOptions>,
    tls: Arc<ClientConfig>,
    /// Host, as `host` or `host:port`.
    pub(super) host: String,
    /// The registry that this host is a mirror of.
    namespace: Option<String>,
    credentials: Option<Credentials>,
    /// Values of `Authorization` by scope.
    authorizations: Mutex<HashMap<String, String>>,
}

/// One request. Its body, if any, is sent once.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) headers: Vec<(HeaderName, String)>,
    /// What the token has to allow, such as `repository:a/b:pull`.
    pub(super) scope: &'a str,
    /// What is requested, for messages.
    pub(super) what: &'a str,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    pub(crate) fn new(
        options: Arc<RegistryOptions>,
        host: &str,
        namespace: Option<String>,
        credentials: Option<Credentials>,
    ) -> Result<Self, RegistryError> {
        let tls = connection::tls(&options)?;
        let authorizations = Mutex::default();
        Ok(Self { options, tls, host: host.to_owned(), namespace, credentials, authorizations })
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

    /// Sends a request without a body, authenticates if the registry asks for it, and follows
    /// redirects of reads. Returns an answer with any status but a redirect.
    pub(super) async fn call(&self, target: Target, call: &Call<'_>) -> Result<Response<Incoming>, RegistryError> {
        let answer = self.redirected(&target, call).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        // Without a token, or with one that has expired.
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let Some(challenge) = challenges.filter_map(Challenge::parse).next() else { return Ok(answer) };
        drop(answer);
        let authorization = self.authorization(&target, challenge, call).await?;
        self.remember(call.scope, authorization);
        self.redirected(&target, call).await
    }

    fn remember(&self, scope: &str, authorization: String) {
        let mut known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(scope.to_owned(), authorization);
    }

    async fn redirected(&self, target: &Target, call: &Call<'_>) -> Result<Response<Incoming>, RegistryError> {
        let mut at = target.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send(&at, target, call, empty()).await?;
            let is_read = call.method == Method::GET || call.method == Method::HEAD;
            if !is_read || !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            at = self.follow(&at, &answer)?;
        }
        Err(RegistryError::Redirects(self.host.clone()))
    }

    /// Sends one request to `at`. Only if that has the origin of `registry`, the credentials go
    /// with it.
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
        // A request with a body takes as long as that; a connection that stalls is closed by TCP.
        if call.method == Method::PUT {
            return connection::send(at, request, &self.options, &self.tls).await;
        }
        let answer = timeout(ANSWER, connection::send(at, request, &self.options, &self.tls)).await;
        answer.unwrap_or_else(|_| {
            Err(RegistryError::Unreachable { host: at.authority(), problem: "it does not answer".into() })
        })
    }

    async fn authorization(
        &self,
        registry: &Target,
        challenge: Challenge,
        call: &Call<'_>,
    ) -> Result<String, RegistryError> {
        let basic = self.credentials.as_ref().and_then(Credentials::basic);
        let (realm, service, scope) = match challenge {
            Challenge::Basic => return basic.ok_or_else(|| self.denied(call)),
            Challenge::Bearer { realm, service, scope } => (realm, service, scope),
        };
        let scope = if call.scope.is_empty() { scope.unwrap_or_default() } else { call.scope.to_owned() };
        let at = registry.follow(&realm, &self.options.plain_http)?;
        let mut parameters = vec![("scope", scope.as_str())];
        parameters.extend(service.as_deref().map(|service| ("service", service)));
        let (method, body, at) = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                parameters.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "sandboxvm"),
                    ("refresh_token", token.as_str()),
                ]);
                let form: Vec<_> =
                    parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
                (Method::POST, full(form.join("&").into()), at)
            }
            _ => {
                let with = |at: Target, (name, value): (&str, &str)| at.with_query(name, value);
                (Method::GET, empty(), parameters.into_iter().filter(|(_, value)| !value.is_empty()).fold(at, with))
            }
        };
        let mut request = Request::builder().method(&method).uri(&at.path).header(HOST, at.authority());
        if method == Method::POST {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        } else if let Some(basic) = &basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let request = request.body(body).map_err(|error| RegistryError::Address(error.to_string()))?;
        // A redirect of a token service is not followed: the credentials are for this host alone.
        let sent = timeout(ANSWER, connection::send(&at, request, &self.options, &self.tls)).await;
        let fail = |problem: &str| RegistryError::Unreachable { host: at.authority(), problem: problem.to_owned() };
        let answer = sent.map_err(|_| fail("it does not answer"))??;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(self.denied(call));
            }
            _ => return Err(self.status(&answer, "a token")),
        }
        let body = timeout(ANSWER, Limited::new(answer.into_body(), MAX_TOKEN).collect()).await;
        let body = body.map_err(|_| fail("it does not answer"))?.map_err(|error| fail(&error.to_string()))?;
        let token: Token =
            serde_json::from_slice(&body.to_bytes()).map_err(|error| self.answer(printable(&error.to_string())))?;
        let token = token.token.or(token.access_token).ok_or_else(|| self.answer("it contains no token"))?;
        Ok(format!("Bearer {token}"))
    }

    pub(super) fn denied(&self, call: &Call<'_>) -> RegistryError {
        let with_credentials = self.credentials.is_some();
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

    fn status(&self, answer: &Response<Incoming>, what: &str) -> RegistryError {
        let status = answer.status().as_u16();
        RegistryError::Status { host: self.host.clone(), status, what: what.to_owned() }
    }
}

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn encoded(value: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
}
