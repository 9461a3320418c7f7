//! The network of a sandbox, as a caller sees it.

use super::{proxy::ProxySpec, record::NetworkRecord, spec::NetworkSpec};
use crate::{record::RecordError, sandbox::Sandbox};

impl Sandbox {
    /// Returns true if the machine of the sandbox has a network card.
    #[must_use]
    pub fn has_network_card(&self) -> bool {
        self.record.network_card
    }

    /// Returns what the sandbox may reach, or `None` if it has no network.
    ///
    /// # Errors
    /// When the record cannot be read. Nothing passes then.
    pub fn network(&self) -> Result<Option<NetworkSpec>, RecordError> {
        Ok(NetworkRecord::read(&self.directory)?.map(|record| record.settings))
    }

    /// Returns the proxy that carries the sandbox's connections as recorded: its own, or the operator's.
    ///
    /// # Errors
    /// When the record cannot be read. Nothing passes then.
    pub fn upstream_proxy(&self) -> Result<Option<ProxySpec>, RecordError> {
        let record = NetworkRecord::read(&self.directory)?;
        Ok(record.and_then(|record| record.proxy().map(|(proxy, _)| proxy.clone())))
    }
}
