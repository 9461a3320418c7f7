//! Docker's `config.json`: which registry has which credentials, or which program knows them. May
//! put nothing of its content into an error.

use crate::{reference::Reference, registry::Credentials};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Programs write it with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The part of the file that is about credentials.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DockerConfig {
    #[serde(default)]
    auths: Option<BTreeMap<String, Auth>>,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Where the credentials of a registry are.
pub(super) enum Place {
    /// In the file.
    File(Credentials),
    /// The program `docker-credential-NAME` knows them, under this address.
    Helper {
        /// NAME.
        name: String,
        /// What the program is asked for.
        address: String,
    },
}

impl DockerConfig {
    /// Returns where the credentials of a registry are, or `None` if docker has none for it.
    ///
    /// # Errors
    /// Fails with what is wrong if the entry of the registry is not readable.
    pub(super) fn place(mut self, registry: &str) -> Result<Option<Place>, &'static str> {
        let key = key(registry);
        let helper = |name: String| Place::Helper { name, address: key.clone() };
        let named = |name: &String| !name.is_empty();
        if let Some(name) = self.cred_helpers.take().and_then(|mut all| all.remove(&key)).filter(named) {
            return Ok(Some(helper(name)));
        }
        let auths = self.auths.take().unwrap_or_default();
        // Programs write the host, or a URL of it.
        let is_it = |(stated, _): &(&String, &Auth)| host(stated) == host(&key);
        let entry = auths.get_key_value(&key).or_else(|| auths.iter().find(is_it));
        if let Some(found) = entry.map(|(_, auth)| auth.credentials()).transpose()?.flatten() {
            return Ok(Some(Place::File(found)));
        }
        Ok(self.creds_store.filter(named).map(helper))
    }
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        let stated = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = stated(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        if let Some(auth) = stated(&self.auth) {
            let decoded = BASE64.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let (user, password) =
                decoded.as_deref().and_then(|text| text.split_once(':')).ok_or("its \"auth\" is not valid")?;
            // Docker pads it with zeros.
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Credentials::Password { user: user.to_owned(), password }));
        }
        Ok(stated(&self.username)
            .zip(stated(&self.password))
            .map(|(user, password)| Credentials::Password { user, password }))
    }
}

/// Returns the key under which docker keeps credentials of a registry: its name, but for the
/// default registry a URL.
fn key(registry: &str) -> String {
    let default = "x".parse::<Reference>().ok();
    match default.filter(|default| [default.registry(), default.host()].contains(&registry)) {
        Some(default) => format!("https://{}/v1/", default.host()),
        None => registry.to_owned(),
    }
}

/// Returns the host of a key.
fn host(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn place(config: Value, registry: &str) -> String {
        let config: DockerConfig = serde_json::from_value(config).unwrap();
        match config.place(registry) {
            Ok(Some(Place::File(Credentials::Password { user, password }))) => format!("{user}:{password}"),
            Ok(Some(Place::File(Credentials::IdentityToken(token)))) => format!("token {token}"),
            Ok(Some(Place::Helper { name, address })) => format!("{name} {address}"),
            Ok(None) => "none".into(),
            Err(problem) => problem.into(),
        }
    }

    #[test]
    fn places_are_those_of_docker() {
        // "user:right" in base64.
        let auths = json!({"auths": {"a.example": {"auth": "dXNlcjpyaWdodA=="}, "https://b.example/v2/": {"auth": "dXNlcjpyaWdodA"},
            "c.example": {"username": "u", "password": "p"}, "d.example": {"auth": "dTo=", "identitytoken": "t"},
            "e.example": {}, "f.example": {"auth": "?"}}, "HttpHeaders": {}});
        for (registry, expected) in [
            ("a.example", "user:right"),
            ("b.example", "user:right"),
            ("c.example", "u:p"),
            ("d.example", "token t"),
            ("e.example", "none"),
            ("f.example", "its \"auth\" is not valid"),
            ("example", "none"),
        ] {
            assert_eq!(place(auths.clone(), registry), expected, "{registry}");
        }
        let helpers = json!({"auths": {"a.example": {}, "b.example": {"auth": "dXNlcjpyaWdodA=="}},
            "credsStore": "all", "credHelpers": {"c.example": "one", "d.example": ""}});
        for (registry, expected) in [
            ("a.example", "all a.example"),
            ("b.example", "user:right"),
            ("c.example", "one c.example"),
            ("d.example", "all d.example"),
        ] {
            assert_eq!(place(helpers.clone(), registry), expected, "{registry}");
        }
        assert_eq!(place(json!({"auths": null, "credsStore": null}), "a.example"), "none");
        let default: Reference = "x".parse().unwrap();
        let hub = format!("https://{}/v1/", default.host());
        assert_eq!(place(json!({"auths": {hub: {"auth": "dXNlcjpyaWdodA=="}}}), default.registry()), "user:right");
    }
}
