//! The network of sandboxes: what a new one gets, and what changes while it runs. The manager keeps what is in force, and the
//! record here what the client said.

pub(crate) mod egress;
pub(crate) mod ingress;

use super::{
    entry::Entry,
    error::RegistryError,
    record::Record,
    state::{Intent, Registry},
};
use egress::{Egress, error::EgressError};
use sandboxvm_manager::{NetworkReport, NetworkSpec, Reach, Sandbox, SuperviseError, SupervisionSpec};
use std::time::Duration;
use tokio::time::timeout;

/// Maximum time that a supervisor may take to report. It answers within milliseconds; others wait for their turn meanwhile.
const REPORTS_WITHIN: Duration = Duration::from_secs(1);

impl Registry {
    /// Returns the network of a sandbox that is to be made, or `None` if its machine has no network card.
    ///
    /// # Errors
    /// When the words have no meaning, or the operator does not permit what they mean.
    pub(super) fn wanted_network(
        &self,
        egress: &Egress,
        internet: Option<bool>,
    ) -> Result<Option<NetworkSpec>, RegistryError> {
        let spec = egress.spec(internet, &self.network)?;
        if !self.network.has_cards() && spec.reach == Reach::Nothing {
            return Ok(None);
        }
        spec.check()?;
        self.network.permits.check(&spec)?;
        Ok(Some(spec))
    }

    /// Gives the network of a new sandbox its processes. One without a network needs none.
    pub(super) async fn start_network(&self, sandbox: &Sandbox) -> Result<(), RegistryError> {
        Ok(sandbox.supervise(&self.supervisor, &SupervisionSpec::default()).await?)
    }

    /// Does the same for a copy and for a sandbox that was resumed: what they are to reach is in their records.
    pub(super) async fn restart_network(&self, sandbox: &Sandbox) -> Result<(), RegistryError> {
        Ok(sandbox.ensure_network(&self.supervisor).await?)
    }

    /// Replaces what a sandbox may reach: all of it at the same time, also while it is paused.
    #[tracing::instrument(skip_all)]
    pub(crate) async fn set_network(
        &self,
        entry: &Entry,
        egress: Egress,
        internet: Option<bool>,
    ) -> Result<(), RegistryError> {
        let _change = self.alter(entry).await?;
        // Before anything is in force: a server that is killed meanwhile must not leave the two different.
        let name = intent_name(entry);
        let wanted = self.wanted_network(&egress, internet)?;
        check_proxy(wanted.as_ref()).await?;
        self.intents
            .put(&name, &Intent::SetNetwork { of: entry.id.clone(), egress: Box::new(egress.clone()), internet })?;
        let set = self.set_network_held(entry, wanted, egress, internet).await;
        self.remove_network_intent(&name)?;
        self.or_gone(entry, set).await
    }

    async fn set_network_held(
        &self,
        entry: &Entry,
        wanted: Option<NetworkSpec>,
        egress: Egress,
        internet: Option<bool>,
    ) -> Result<(), RegistryError> {
        let sandbox = self.sandbox(entry)?;
        // Its share of the limits stays.
        let limits = sandbox.network()?.map_or(self.network.permits.limits, |network| network.limits);
        let wanted = wanted.map(|wanted| NetworkSpec { limits, ..wanted });
        let set = match wanted {
            // Nothing is what a machine without a card reaches.
            Some(wanted) if sandbox.has_network_card() || wanted.reach != Reach::Nothing => {
                sandbox.set_network(&self.supervisor, &wanted).await
            }
            // The operator permits nothing any more.
            None if sandbox.has_network_card() => sandbox.set_network(&self.supervisor, &NetworkSpec::default()).await,
            _ => Ok(()),
        };
        let is_recorded = matches!(set, Ok(()) | Err(SuperviseError::NetworkDown(_)));
        if is_recorded {
            self.update(entry, Record { egress: egress.shown(), allow_internet_access: internet, ..entry.record() })?;
        }
        Ok(set?)
    }

    /// Completes changes that a server which was killed had begun.
    pub(super) async fn complete_network_changes(&self, begun: Vec<Intent>) -> Result<(), RegistryError> {
        for intent in begun {
            let Intent::SetNetwork { of, egress, internet } = intent else { continue };
            let Some(entry) = self.entry(&of) else {
                self.remove_network_intent(&format!("network-{of}"))?;
                continue;
            };
            if let Err(error) = self.set_network(&entry, *egress, internet).await {
                tracing::error!(sandbox = %of, %error, "cannot complete a change of a network");
            }
        }
        Ok(())
    }

    /// Removes an intent, which may have secrets.
    fn remove_network_intent(&self, name: &str) -> Result<(), RegistryError> {
        let outgoing = self.intents.outgoing(name);
        self.intents.remove(name)?;
        outgoing.wipe();
        Ok(())
    }

    /// Counts what passed the network of a running sandbox since the last time, and sees to its supervisor.
    pub(super) async fn keep_network(&self, entry: &Entry) {
        if entry.record().is_paused() {
            return;
        }
        let Ok(sandbox) = self.sandbox(entry) else { return };
        if !sandbox.has_network_card() && entry.record().volumes.is_empty() {
            return;
        }
        self.keep_supervised(&sandbox).await;
        let reported = timeout(REPORTS_WITHIN, sandbox.network_report()).await;
        if let Ok(Ok(Some(NetworkReport { counters: Some(counters), .. }))) = reported {
            self.traffic.add(entry.traffic.take(counters));
        }
    }

    /// Replaces a supervisor that was killed. Until then nothing passes.
    pub(super) async fn keep_supervised(&self, sandbox: &Sandbox) {
        if let Err(error) = sandbox.ensure_network(&self.supervisor).await {
            tracing::warn!(sandbox = %sandbox.id(), %error, "cannot start the network of a sandbox again");
        }
    }
}

fn intent_name(entry: &Entry) -> String {
    format!("network-{}", entry.id)
}

/// Checks that the proxy which a client named has an address. Its sandbox would not start otherwise, for a reason that
/// is the client's.
pub(super) async fn check_proxy(network: Option<&NetworkSpec>) -> Result<(), EgressError> {
    match network.and_then(|network| network.proxy.as_ref()) {
        Some(proxy) => proxy.check_name().await.map_err(EgressError::Proxy),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        channel::failure::{Failure, Why},
        config::Config,
        registry::record::tests::example,
    };
    use sandboxvm_images::bundle::{Bundle, BundleSources};
    use sandboxvm_manager::{Manager, SupervisorProgram};
    use serde_json::{Value, json};
    use std::{
        fs::{self, DirBuilder},
        os::unix::fs::DirBuilderExt,
        path::Path,
    };

    const ID: &str = "abcdefgh";

    /// Returns a registry with a sandbox that does not run and whose machine has a network card.
    fn registry(home: &Path, network: &str) -> Registry {
        let manager = Manager::open(home).unwrap();
        let file =
            |path: &str| json!({"path": path, "identity": {"device": 1, "inode": 2, "size": 3, "modified_ns": 4}});
        let record = json!({
            "format": 1, "id": ID, "name": null, "created_at": "2023-11-14T22:13:20.123Z", "vcpus": 1,
            "memory_bytes": 256 << 20, "disk_bytes": 2_u64 << 30, "kernel": file("/b/vmlinux"), "image": file("/b/base.erofs"),
            "agent": file("/b/agent.erofs"), "env": [], "ephemeral": false, "network_card": true,
        });
        let directory = home.join("sandboxes").join(ID);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).unwrap();
        fs::write(directory.join("config.json"), record.to_string()).unwrap();
        let config = Config { network: toml::from_str(network).unwrap(), ..Config::default() };
        let supervisor = SupervisorProgram { program: "/nonexistent".into(), arguments: Vec::new() };
        let bundle = Bundle::find(&BundleSources::default());
        let registry = Registry::open(&config, manager, bundle, supervisor).unwrap();
        registry.add_for_test(example(ID));
        registry
    }

    async fn set(registry: &Registry, words: Value) -> Result<(), RegistryError> {
        let entry = registry.entries().remove(0);
        registry.set_network(&entry, serde_json::from_value(words).unwrap(), None).await
    }

    /// Returns the paths of the files below `directory` that contain `text`.
    fn containing(directory: &Path, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                found.extend(containing(&path, text));
            } else if String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).contains(text) {
                found.push(path.file_name().unwrap().to_string_lossy().into_owned());
            }
        }
        found
    }

    #[tokio::test]
    async fn password_of_a_clients_proxy_is_in_no_record_but_where_secrets_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let registry = registry(home.path(), "default = \"public\"");
        let proxy = json!({"address": "192.0.2.7:1080", "username": "me", "password": "hush"});
        set(&registry, json!({"egressProxy": proxy})).await.unwrap();
        assert_eq!(containing(home.path(), "hush"), ["network.secrets"]);
        let entry = registry.entries().remove(0);
        let shown = json!({"egressProxy": {"address": "192.0.2.7:1080", "username": "me"}});
        assert_eq!(serde_json::to_value(entry.record().egress.shown()).unwrap(), shown);
        let in_force = registry.sandbox(&entry).unwrap().upstream_proxy().unwrap().unwrap();
        assert_eq!((in_force.to_string().as_str(), in_force.user.as_deref()), ("socks5://192.0.2.7:1080", Some("me")));
        // A change that does not name it ends it.
        set(&registry, json!({"denyOut": ["192.0.2.1"]})).await.unwrap();
        assert_eq!(registry.sandbox(&entry).unwrap().upstream_proxy().unwrap(), None);
        assert!(containing(home.path(), "hush").is_empty());
    }

    #[tokio::test]
    async fn record_with_values_of_headers_is_overwritten_when_it_is_replaced_or_removed() {
        let home = tempfile::tempdir().unwrap();
        let registry = registry(home.path(), "default = \"public\"");
        let rules = json!({"api.example": [{"transform": {"headers": {"X-Key": "hush"}}}]});
        let path = home.path().join("server/sandboxes").join(format!("{ID}.json"));
        let link = |name: &str| {
            let link = home.path().join(name);
            fs::hard_link(&path, &link).unwrap();
            link
        };
        let is_wiped = |link: &Path| fs::read(link).unwrap().iter().all(|byte| *byte == 0);
        set(&registry, json!({"rules": rules})).await.unwrap();
        let replaced = link("replaced");
        assert!(fs::read_to_string(&replaced).unwrap().contains("hush"));
        let entry = registry.entries().remove(0);
        registry.set_timeout(&entry, Duration::from_secs(60)).await.unwrap();
        assert!(is_wiped(&replaced));
        let removed = link("removed");
        registry.lose(&entry).unwrap();
        assert!(is_wiped(&removed) && !path.exists());
    }

    #[tokio::test]
    async fn client_cannot_replace_the_proxy_of_the_operator() {
        let home = tempfile::tempdir().unwrap();
        let registry = registry(home.path(), "default = \"public\"\nproxy = \"http://10.0.0.1:3128\"");
        let proxy = json!({"egressProxy": {"address": "proxy.example:1080"}});
        let failure = Failure::from(set(&registry, proxy.clone()).await.unwrap_err());
        let text = "the operator does not permit an upstream proxy other than its own";
        assert_eq!((failure.why, failure.message.as_str()), (Why::Forbidden, text));
        let created = registry.wanted_network(&serde_json::from_value(proxy).unwrap(), None).unwrap_err();
        assert_eq!(Failure::from(created).why, Why::Forbidden);
        set(&registry, json!({})).await.unwrap();
        let entry = registry.entries().remove(0);
        let in_force = registry.sandbox(&entry).unwrap().upstream_proxy().unwrap().unwrap();
        assert_eq!(in_force.to_string(), "http://10.0.0.1:3128");
    }
}
