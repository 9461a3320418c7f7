//! What a request says beside its message: for which sandbox it is, as whom, and for how long.

use super::ConnectError;
use crate::sandbox_plane::{
    address::text,
    envd::state::{SandboxState, SharedTarget},
};
use axum::http::{HeaderMap, header::AUTHORIZATION, request::Parts};
use base64::{Engine, prelude::BASE64_STANDARD};
use sandboxvm_manager::{CText, Files, RemoteSandbox};
use std::time::Duration;

/// Most digits of a timeout, as Connect has it.
const MAX_TIMEOUT_DIGITS: usize = 10;

#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) target: SharedTarget,
    /// Whose processes and files these are.
    pub(crate) user: CText,
    /// How long the client waits; `None` where it waits indefinitely.
    pub(crate) timeout: Option<Duration>,
    /// How often it wants to hear that a stream lives.
    pub(crate) keepalive: Option<Duration>,
}

impl Call {
    pub(super) fn of(parts: &Parts) -> Result<Self, ConnectError> {
        let target = parts.extensions.get::<SharedTarget>().cloned();
        let target = target.ok_or_else(|| ConnectError::invalid("the request is for no sandbox"))?;
        let user = match user(&parts.headers)? {
            Some(user) => user,
            None => target.user().to_owned(),
        };
        Ok(Self {
            user: CText::try_from(user.as_str()).map_err(|error| ConnectError::invalid(format!("user: {error}")))?,
            timeout: timeout(&parts.headers)?,
            keepalive: keepalive(&parts.headers),
            target,
        })
    }

    pub(crate) fn sandbox(&self) -> &RemoteSandbox {
        self.target.sandbox()
    }

    pub(crate) fn state(&self) -> &SandboxState {
        self.target.state()
    }

    /// The sandbox's files as the user sees them.
    pub(crate) fn files(&self) -> Files<'_> {
        self.target.sandbox().files().as_user(self.user.clone())
    }
}

/// `Basic base64("user:")`; other schemes and no user at all leave it to the sandbox.
fn user(headers: &HeaderMap) -> Result<Option<String>, ConnectError> {
    let Some(value) = text(headers, AUTHORIZATION.as_str()) else { return Ok(None) };
    let Some((scheme, credentials)) = value.split_once(' ') else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    let decoded = BASE64_STANDARD.decode(credentials.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let decoded = decoded.ok_or_else(|| ConnectError::invalid("Authorization: no valid base64 of a user name"))?;
    let user = decoded.split(':').next().unwrap_or_default();
    Ok((!user.is_empty()).then(|| user.to_owned()))
}

fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, ConnectError> {
    let Some(value) = headers.get("connect-timeout-ms") else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.len() <= MAX_TIMEOUT_DIGITS);
    let ms = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit())).and_then(|text| text.parse().ok());
    ms.map(|ms| Some(Duration::from_millis(ms)))
        .ok_or_else(|| ConnectError::invalid("Connect-Timeout-Ms: at most ten digits"))
}

/// One that makes no sense is none.
fn keepalive(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, "keepalive-ping-interval")?.parse::<u32>().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn a_user_is_named_as_for_basic_authorization() {
        let of = |value: &str| user(&headers("authorization", value));
        assert_eq!(of("Basic cm9vdDo="), Ok(Some("root".into())));
        assert_eq!(of("basic cm9vdDpzZWNyZXQ="), Ok(Some("root".into())));
        assert_eq!(of("Basic Og=="), Ok(None));
        assert_eq!(of("Bearer cm9vdDo="), Ok(None));
        assert_eq!(user(&HeaderMap::new()), Ok(None));
        assert!(of("Basic ###").is_err() && of("Basic /w==").is_err());
    }

    #[test]
    fn times_are_read_and_nonsense_is_refused() {
        assert_eq!(timeout(&headers("connect-timeout-ms", "1500")), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        for wrong in ["", "-1", "1.5", "12345678901", "+5"] {
            assert!(timeout(&headers("connect-timeout-ms", wrong)).is_err(), "{wrong:?}");
        }
        assert_eq!(keepalive(&headers("keepalive-ping-interval", "50")), Some(Duration::from_secs(50)));
        assert_eq!(keepalive(&headers("keepalive-ping-interval", "0")), None);
        assert_eq!(keepalive(&headers("keepalive-ping-interval", "soon")), None);
    }
}
