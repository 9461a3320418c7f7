//! What clients say of a sandbox's network, at its creation and later.

use super::{admission::Caller, error::ApiError};
use crate::{app::SharedApp, channel::request::Operation, registry::network::egress::Egress};
use axum::{
    Extension, Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::Value;

/// `network` of a create.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkBody {
    #[serde(flatten)]
    pub(super) egress: Egress,
    pub(super) allow_public_traffic: Option<bool>,
    pub(super) mask_request_host: Option<String>,
    pub(super) https_ports: Option<Vec<u64>>,
    allow_in: Option<Vec<Value>>,
    deny_in: Option<Vec<Value>>,
}

impl NetworkBody {
    /// Refuses what would be ignored otherwise.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let lists = [("network.allowIn", &self.allow_in), ("network.denyIn", &self.deny_in)];
        match lists.iter().find(|(_, list)| list.as_ref().is_some_and(|list| !list.is_empty())) {
            Some((what, _)) => Err(ApiError::unsupported(what)),
            None => Ok(()),
        }
    }

    fn is_about_ports(&self) -> bool {
        self.allow_public_traffic.is_some() || self.mask_request_host.is_some() || self.https_ports.is_some()
    }
}

/// All that a sandbox's way out is to be from now on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpdateBody {
    #[serde(flatten)]
    network: NetworkBody,
    #[serde(alias = "allow_internet_access")]
    allow_internet_access: Option<bool>,
}

/// `PUT /sandboxes/{id}/network`: replaces all of it, so what the body leaves out is cleared.
pub(super) async fn set(
    State(app): State<SharedApp>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    body: Result<Json<UpdateBody>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let UpdateBody { network, allow_internet_access } = body?.0;
    network.check()?;
    if network.is_about_ports() {
        let problem = "allowPublicTraffic, maskRequestHost and httpsPorts can only be set when a sandbox is created";
        return Err(ApiError::bad(problem));
    }
    let wanted = Operation::SetNetwork { id, egress: network.egress, allow_internet_access };
    caller.ask::<()>(&app, wanted).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bodies_are_read_as_clients_send_them() {
        let create = json!({
            "allowPublicTraffic": false, "allowOut": ["api.example.com", "1.1.1.1"], "denyOut": ["0.0.0.0/0"],
            "dnsServers": ["1.1.1.1"], "maskRequestHost": "${PORT}-x.example.com", "httpsPorts": [3000],
        });
        let body: NetworkBody = serde_json::from_value(create).unwrap();
        assert_eq!((body.allow_public_traffic, body.https_ports.as_deref()), (Some(false), Some(&[3000][..])));
        assert_eq!(
            serde_json::to_value(&body.egress).unwrap(),
            json!({"allowOut": ["api.example.com", "1.1.1.1"], "denyOut": ["0.0.0.0/0"], "dnsServers": ["1.1.1.1"]})
        );
        for name in ["allow_internet_access", "allowInternetAccess"] {
            let update: UpdateBody = serde_json::from_value(json!({name: false, "denyOut": ["1.1.1.1"]})).unwrap();
            assert_eq!(update.allow_internet_access, Some(false));
            assert!(!update.network.is_about_ports() && update.network.egress != Egress::default());
        }
        let empty: UpdateBody = serde_json::from_value(json!({})).unwrap();
        assert!(empty.network.egress == Egress::default() && empty.allow_internet_access.is_none());
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let read = |json: Value| serde_json::from_value::<UpdateBody>(json);
        let refused = read(json!({"denyIn": ["0.0.0.0/0"]})).unwrap().network.check().unwrap_err();
        assert_eq!(refused.status, StatusCode::NOT_IMPLEMENTED);
        assert_eq!(refused.message, "network.denyIn is not supported by sandboxvm; see docs/e2b.md");
        read(json!({"allowIn": [], "denyIn": null})).unwrap().network.check().unwrap();
        for ports in [json!({"httpsPorts": [1]}), json!({"maskRequestHost": "x"}), json!({"allowPublicTraffic": true})]
        {
            assert!(read(ports).unwrap().network.is_about_ports());
        }
        assert!(read(json!({"allowOut": "1.1.1.1"})).is_err());
    }
}
