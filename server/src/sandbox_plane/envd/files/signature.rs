//! Addresses of files that carry their own permission. A client that has a sandbox's token signs a path, an operation and a
//! user with it, and can give the address to others.

use super::query::Query;
use crate::{
    access::tokens::Scope,
    app::{App, SharedApp},
    sandbox_plane::Unauthorized,
};
use axum::http::Method;
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use sandboxvm_manager::SandboxId;
use sha2::{Digest, Sha256};
use std::time::{SystemTime, UNIX_EPOCH};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::Semaphore;

/// Searches at a time: one tries every sandbox's token, which takes a processor about a microsecond for each.
static SEARCHES: Semaphore = Semaphore::const_new(2);

/// Whether a request about a file has the signature for it.
pub(in crate::sandbox_plane::envd) fn check(
    app: &App,
    id: &SandboxId,
    generation: Option<u32>,
    method: &Method,
    query: &Query,
) -> Result<(), Unauthorized> {
    let claim = Claim::of(method, query)?;
    match bool::from(claim.is_signed_with(&app.access.tokens.of(Scope::Envd, id, generation.unwrap_or(0)))) {
        true => claim.is_in_time(now()),
        false => Err(Unauthorized::Signature),
    }
}

/// The sandbox whose token a request was signed with, of one that says in no other way which it is for: clients without a
/// domain make such addresses.
pub(in crate::sandbox_plane::envd) async fn signer(
    app: SharedApp,
    method: Method,
    query: Query,
) -> Result<SandboxId, Unauthorized> {
    let _turn = SEARCHES.acquire().await.map_err(|_| Unauthorized::Signature)?;
    let search = tokio::task::spawn_blocking(move || {
        let claim = Claim::of(&method, &query)?;
        let secured = app.registry.entries().into_iter().filter(|entry| entry.is_secure());
        let signer =
            claim.signer(secured, |entry| app.access.tokens.of(Scope::Envd, &entry.id, entry.token_generation()));
        let signer = signer.ok_or(Unauthorized::Signature)?;
        claim.is_in_time(now()).map(|()| signer.id.clone())
    });
    search.await.unwrap_or(Err(Unauthorized::Signature))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a request says that it may do, and the signature that is to prove it.
struct Claim<'q> {
    given: &'q str,
    /// Path, operation and user, hashed: the token follows, and then the expiry.
    begun: Sha256,
    until: Option<u64>,
}

impl<'q> Claim<'q> {
    fn of(method: &Method, query: &'q Query) -> Result<Self, Unauthorized> {
        let operation = match *method {
            Method::GET | Method::HEAD => "read",
            Method::POST => "write",
            _ => return Err(Unauthorized::Signature),
        };
        let given = query.signature.as_deref().ok_or(Unauthorized::NoSignature)?;
        let (path, user) = (query.path.as_deref().unwrap_or_default(), query.username.as_deref().unwrap_or_default());
        // The parts are joined by colons: with one in the user, an address could be read as another with the same text.
        if user.contains(':') {
            return Err(Unauthorized::Signature);
        }
        let begun = Sha256::new().chain_update(format!("{path}:{operation}:{user}:"));
        Ok(Self { given, begun, until: query.signature_expiration })
    }

    /// The signature that this token makes.
    fn signature(&self, token: &str) -> String {
        let mut hash = self.begun.clone().chain_update(token);
        if let Some(until) = self.until {
            hash.update(format!(":{until}"));
        }
        format!("v1_{}", BASE64_STANDARD_NO_PAD.encode(hash.finalize()))
    }

    fn is_signed_with(&self, token: &str) -> Choice {
        self.signature(token).as_bytes().ct_eq(self.given.as_bytes())
    }

    /// Whose token it was signed with. All are tried, whichever it is: how long it takes says how many there are and no more.
    fn signer<E>(&self, all: impl Iterator<Item = E>, token: impl Fn(&E) -> String) -> Option<E> {
        all.fold(None, |found, one| if bool::from(self.is_signed_with(&token(&one))) { Some(one) } else { found })
    }

    /// The expiry is part of what was signed, so it is the signer's.
    fn is_in_time(&self, now: u64) -> Result<(), Unauthorized> {
        match self.until {
            Some(until) if until < now => Err(Unauthorized::Expired),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_with(token: &str, now: u64, method: &Method, query: &Query) -> Result<(), Unauthorized> {
        let claim = Claim::of(method, query)?;
        if bool::from(claim.is_signed_with(token)) { claim.is_in_time(now) } else { Err(Unauthorized::Signature) }
    }

    fn query(text: &str) -> Query {
        serde_urlencoded::from_str(text).unwrap()
    }

    fn signed(text: &str, method: &Method, token: &str) -> Query {
        let plain = Query { signature: Some(String::new()), ..query(text) };
        let signature = Claim::of(method, &plain).unwrap().signature(token);
        Query { signature: Some(signature), ..plain }
    }

    #[test]
    fn a_signature_is_that_of_the_clients() {
        // get_signature("/home/user/a.txt", "read", None, "token") of the Python client.
        let query = query("path=/home/user/a.txt&signature=v1_9d%2B9NQHwSJMj04fFBbl0/qkmU2zFSlzEB4IWXDbnuNE");
        assert_eq!(Claim::of(&Method::GET, &query).unwrap().signature("token"), query.signature.clone().unwrap());
        assert_eq!(check_with("token", 0, &Method::GET, &query), Ok(()));
        assert_eq!(check_with("token", 0, &Method::HEAD, &query), Ok(()));
    }

    #[test]
    fn it_opens_that_file_operation_and_user_alone() {
        let good = signed("path=a&username=root&signature_expiration=100", &Method::GET, "token");
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
        assert_eq!(check_with("token", 0, &Method::POST, &signed("path=a", &Method::POST, "token")), Ok(()));
    }

    #[test]
    fn the_search_for_a_signer_finds_the_signer_alone() {
        let tokens = ["one", "two", "three"];
        let of = |query: &Query| {
            Claim::of(&Method::GET, query).unwrap().signer(tokens.into_iter(), |token| (*token).to_owned())
        };
        for token in tokens {
            let good = signed("path=/a&signature_expiration=100", &Method::GET, token);
            assert_eq!(of(&good), Some(token));
            assert_eq!(of(&Query { path: Some("/b".into()), ..good.clone() }), None);
            assert_eq!(of(&Query { signature_expiration: Some(101), ..good }), None);
        }
        assert_eq!(of(&signed("path=/a", &Method::GET, "four")), None);
    }

    #[test]
    fn an_address_cannot_be_read_as_another_with_the_same_text() {
        // Signed for reading "a:write:b" as the default user: the text is that of writing "a" as "b:read:".
        let read = signed("path=a:write:b", &Method::GET, "token");
        let write = Query { path: Some("a".into()), username: Some("b:read:".into()), ..read };
        assert_eq!(check_with("token", 0, &Method::POST, &write), Err(Unauthorized::Signature));
    }
}
