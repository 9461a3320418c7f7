//! Addresses of files that carry their own permission. A client that has a sandbox's token signs a path, an operation and a
//! user with it, and can give the address to others. The launcher verifies it.

use super::query::Query;
use crate::{
    access::signature::{Claim, Operation},
    sandbox_plane::Unauthorized,
};
use axum::http::Method;

/// What a request says that it may do, and the signature that is to prove it.
pub(in crate::sandbox_plane::envd) fn claim(method: &Method, query: &Query) -> Result<Claim, Unauthorized> {
    let operation = match *method {
        Method::GET | Method::HEAD => Operation::Read,
        Method::POST => Operation::Write,
        _ => return Err(Unauthorized::Signature),
    };
    let given = query.signature.clone().ok_or(Unauthorized::NoSignature)?;
    let (path, user) = (query.path.clone().unwrap_or_default(), query.username.clone().unwrap_or_default());
    if user.contains(':') {
        return Err(Unauthorized::Signature);
    }
    Ok(Claim { path, operation, user, until: query.signature_expiration, given })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::signature::Problem;

    fn check_with(token: &str, now: u64, method: &Method, query: &Query) -> Result<(), Unauthorized> {
        claim(method, query)?.check(token, now).map_err(|problem| match problem {
            Problem::Signature => Unauthorized::Signature,
            Problem::Expired => Unauthorized::Expired,
        })
    }

    fn query(text: &str) -> Query {
        serde_urlencoded::from_str(text).unwrap()
    }

    fn signed(text: &str, method: &Method, token: &str) -> Query {
        let plain = Query { signature: Some(String::new()), ..query(text) };
        let signature = claim(method, &plain).unwrap().signature(token);
        Query { signature: Some(signature), ..plain }
    }

    #[test]
    fn a_signature_is_that_of_the_clients() {
        // get_signature("/home/user/a.txt", "read", None, "token") of the Python client.
        let query = query("path=/home/user/a.txt&signature=v1_9d%2B9NQHwSJMj04fFBbl0/qkmU2zFSlzEB4IWXDbnuNE");
        assert_eq!(claim(&Method::GET, &query).unwrap().signature("token"), query.signature.clone().unwrap());
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
        let of =
            |query: &Query| claim(&Method::GET, query).unwrap().signer(tokens.into_iter(), |token| (*token).to_owned());
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
