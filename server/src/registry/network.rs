//! The network of sandboxes: what a new one gets, and what changes while it runs. The manager keeps what is in force, and the
//! record here what the client said.

use super::{
    egress::Egress,
    entry::Entry,
    error::RegistryError,
    record::Record,
    state::{Intent, Registry},
};
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
        self.intents
            .put(&name, &Intent::SetNetwork { of: entry.id.clone(), egress: Box::new(egress.clone()), internet })?;
        let set = self.set_network_held(entry, wanted, egress, internet).await;
        self.intents.remove(&name)?;
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
            self.update(entry, Record { egress, allow_internet_access: internet, ..entry.record() })?;
        }
        Ok(set?)
    }

    /// Completes changes that a server which was killed had begun.
    pub(super) async fn complete_network_changes(&self, begun: Vec<Intent>) -> Result<(), RegistryError> {
        for intent in begun {
            let Intent::SetNetwork { of, egress, internet } = intent else { continue };
            let Some(entry) = self.entry(&of) else {
                self.intents.remove(&format!("network-{of}"))?;
                continue;
            };
            if let Err(error) = self.set_network(&entry, *egress, internet).await {
                tracing::error!(sandbox = %of, %error, "cannot complete a change of a network");
            }
        }
        Ok(())
    }

    /// Counts what passed the network of a running sandbox since the last time, and sees to its supervisor.
    pub(super) async fn keep_network(&self, entry: &Entry) {
        if entry.record().is_paused() {
            return;
        }
        let Ok(sandbox) = self.sandbox(entry) else { return };
        if !sandbox.has_network_card() {
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
