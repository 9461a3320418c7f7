//! Tokens of token services. The credentials of a registry go to the realm that the registry
//! itself names: over TLS, unless the user listed that host as one without TLS.

use super::{
    auth::{Challenge, Credentials},
    client::{ANSWER, Call, Client, empty, full, silent},
    connection,
    error::RegistryError,
    target::Target,
};
use crate::manifest::printable;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, StatusCode,
    header::{AUTHORIZATION, HOST},
};
use serde::Deserialize;
use tokio::time::timeout;

/// Maximum size in bytes of the answer of a token service.
const MAX_TOKEN: usize = 256 << 10;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// Returns the value of `Authorization` that answers a challenge.
    pub(super) async fn authorization(
        &self,
        registry: &Target,
        challenge: Challenge,
        call: &Call<'_>,
    ) -> Result<String, RegistryError> {
        let credentials = self.credentials().await?;
        let basic = credentials.and_then(Credentials::basic);
        let (realm, service, scope) = match challenge {
            Challenge::Basic => return basic.ok_or_else(|| self.denied(call)),
            Challenge::Bearer { realm, service, scope } => (realm, service, scope),
        };
        let scope = if call.scope.is_empty() { scope.unwrap_or_default() } else { call.scope.to_owned() };
        let at = registry.follow(&realm, &self.options.plain_http)?;
        let mut parameters = vec![("scope", scope.as_str())];
        parameters.extend(service.as_deref().map(|service| ("service", service)));
        let (method, body, at) = match credentials {
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
        let answer = sent.map_err(|_| silent(&at))??;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(self.denied(call));
            }
            _ => return Err(self.status(&answer, "a token")),
        }
        let body = timeout(ANSWER, Limited::new(answer.into_body(), MAX_TOKEN).collect()).await;
        let body = body.map_err(|_| silent(&at))?.map_err(|error| self.answer(printable(&error.to_string())))?;
        // The error of the parser may quote a token.
        let token: Token =
            serde_json::from_slice(&body.to_bytes()).map_err(|_| self.answer("it is not a valid token"))?;
        let token = token.token.or(token.access_token).ok_or_else(|| self.answer("it contains no token"))?;
        Ok(format!("Bearer {token}"))
    }
}

fn encoded(value: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
}
