//! Addresses of files that carry their own permission: whoever has a sandbox's token signs a path, an operation and a user
//! with it, and hands the address on.

use super::Query;
use crate::{access::tokens::Scope, app::App, registry::entry::Entry, sandbox_plane::Unauthorized};
use axum::http::Method;
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use sha2::{Digest, Sha256};
use std::time::{SystemTime, UNIX_EPOCH};
use subtle::ConstantTimeEq;

/// Whether a request about a file has the signature for it.
pub(in crate::sandbox_plane::envd) fn check(
    app: &App,
    entry: &Entry,
    method: &Method,
    query: &Query,
) -> Result<(), Unauthorized> {
    let token = app.access.tokens.of(Scope::Envd, &entry.id);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    check_with(&token, now, method, query)
}

fn check_with(token: &str, now: u64, method: &Method, query: &Query) -> Result<(), Unauthorized> {
    let operation = match *method {
        Method::GET | Method::HEAD => "read",
        Method::POST => "write",
        _ => return Err(Unauthorized::Signature),
    };
    let given = query.signature.as_deref().ok_or(Unauthorized::NoSignature)?;
    let wanted = sign(token, operation, query);
    if !bool::from(wanted.as_bytes().ct_eq(given.as_bytes())) {
        return Err(Unauthorized::Signature);
    }
    // It is part of what was signed, so it is the signer's.
    match query.signature_expiration {
        Some(until) if until < now => Err(Unauthorized::Expired),
        _ => Ok(()),
    }
}

fn sign(token: &str, operation: &str, query: &Query) -> String {
    let (path, user) = (query.path.as_deref().unwrap_or_default(), query.username.as_deref().unwrap_or_default());
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(until) = query.signature_expiration {
        text.push_str(&format!(":{until}"));
    }
    format!("v1_{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        serde_urlencoded::from_str(text).unwrap()
    }

    #[test]
    fn a_signature_is_that_of_the_clients() {
        // get_signature("/home/user/a.txt", "read", None, "token") of the Python client.
        let query = query("path=/home/user/a.txt&signature=v1_9d%2B9NQHwSJMj04fFBbl0/qkmU2zFSlzEB4IWXDbnuNE");
        assert_eq!(sign("token", "read", &query), query.signature.clone().unwrap());
        assert_eq!(check_with("token", 0, &Method::GET, &query), Ok(()));
        assert_eq!(check_with("token", 0, &Method::HEAD, &query), Ok(()));
    }

    #[test]
    fn it_opens_that_file_operation_and_user_alone() {
        let signed = |text: &str, operation| {
            let plain = query(text);
            Query { signature: Some(sign("token", operation, &plain)), ..plain }
        };
        let good = signed("path=a&username=root&signature_expiration=100", "read");
        assert_eq!(check_with("token", 100, &Method::GET, &good), Ok(()));
        assert_eq!(check_with("token", 101, &Method::GET, &good), Err(Unauthorized::Expired));
        let invalid = Err(Unauthorized::Signature);
        assert_eq!(check_with("other", 0, &Method::GET, &good), invalid);
        assert_eq!(check_with("token", 0, &Method::POST, &good), invalid);
        assert_eq!(check_with("token", 0, &Method::DELETE, &good), invalid);
        for changed in [
            Query { path: Some("b".into()), ..good.clone() },
            Query { username: None, ..good.clone() },
            Query { signature_expiration: Some(1000), ..good.clone() },
            Query { signature_expiration: None, ..good.clone() },
            Query { signature: Some("v1_".into()), ..good.clone() },
        ] {
            assert_eq!(check_with("token", 0, &Method::GET, &changed), invalid, "{changed:?}");
        }
        let unsigned = Query { signature: None, ..good };
        assert_eq!(check_with("token", 0, &Method::GET, &unsigned), Err(Unauthorized::NoSignature));
        assert_eq!(check_with("token", 0, &Method::POST, &signed("path=a", "write")), Ok(()));
    }
}
