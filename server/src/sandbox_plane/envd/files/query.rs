//! What a request for `/files` says in its address. No parameter is accepted twice.

use super::error::FilesError;
use crate::sandbox_plane::envd::{connect::Call, state::SharedTarget};
use axum::{
    extract::Extension,
    http::{StatusCode, Uri},
};
use sandboxvm_manager::CText;
use serde::Deserialize;

/// What a request says in its address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(in crate::sandbox_plane::envd) struct Query {
    pub(in crate::sandbox_plane::envd) path: Option<String>,
    pub(in crate::sandbox_plane::envd) username: Option<String>,
    pub(in crate::sandbox_plane::envd) signature: Option<String>,
    pub(in crate::sandbox_plane::envd) signature_expiration: Option<u64>,
}

impl Query {
    /// Rejects a parameter that is given twice: otherwise one could be checked and the other used.
    pub(in crate::sandbox_plane::envd) fn of(uri: &Uri) -> Result<Self, FilesError> {
        serde_urlencoded::from_str(uri.query().unwrap_or_default())
            .map_err(|error| FilesError::new(StatusCode::BAD_REQUEST, format!("the address: {error}")))
    }

    pub(super) fn call(&self, Extension(target): Extension<SharedTarget>) -> Result<Call, FilesError> {
        let user = match self.username.as_deref() {
            None | Some("") => target.user().to_owned(),
            Some(user) => user.to_owned(),
        };
        let user = CText::try_from(user.as_str())
            .map_err(|error| FilesError::new(StatusCode::BAD_REQUEST, format!("username: {error}")))?;
        Ok(Call { target, user, timeout: None, keepalive: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_says_what_is_meant_once() {
        let of = |uri: &'static str| Query::of(&Uri::from_static(uri));
        let query = of("/files?path=%2Fa%20b&username=root&signature=v1_x&signature_expiration=5&new=1").unwrap();
        assert_eq!((query.path.as_deref(), query.signature_expiration), (Some("/a b"), Some(5)));
        assert_eq!(of("/files").unwrap(), Query::default());
        assert!(of("/files?path=a&path=b").is_err());
        assert!(of("/files?signature_expiration=-1").is_err());
    }
}
