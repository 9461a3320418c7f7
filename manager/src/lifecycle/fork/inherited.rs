//! What copies have of the network of their sandbox. Decides which secrets they get; starts no process.

use super::error::ForkError;
use crate::{
    home::directory::SandboxDirectory,
    network::{pins::KeptPins, proxy::ProxySpec, record::NetworkRecord, secrets::Kept},
    record::RecordError,
    sandbox::Sandbox,
};

/// The network that children inherit: what the sandbox may reach, and the answers that its guest got.
/// Each child gets separate processes.
pub(super) struct Inherited {
    record: NetworkRecord,
    kept: Kept,
    pins: KeptPins,
}

/// Whether children have the secrets and header rules of their parent, and its login at the proxy. Otherwise its processes have
/// placeholders of which no process knows the secrets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Secrets {
    /// Requests that need them fail.
    #[default]
    Left,
    /// They have them.
    Inherited,
}

impl Inherited {
    pub(super) async fn of(sandbox: &Sandbox, secrets: Secrets) -> Result<Option<Self>, RecordError> {
        let Some(mut record) = NetworkRecord::read(&sandbox.directory)? else { return Ok(None) };
        let kept = match secrets {
            Secrets::Inherited => Kept::read(&sandbox.directory)?,
            Secrets::Left => {
                record.settings.secrets.clear();
                record.settings.header_rules.clear();
                // Not the proxy itself: without it, connections would go another way.
                record.settings.proxy = record.settings.proxy.map(ProxySpec::without_login);
                Kept::default()
            }
        };
        Ok(Some(Self { record, kept, pins: KeptPins::of(sandbox.network_pins(false).await) }))
    }

    pub(super) fn write(&self, directory: &SandboxDirectory) -> Result<(), ForkError> {
        self.kept.write(directory)?;
        self.record.write(directory)?;
        Ok(self.pins.write(directory)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manager::tests::manager_with,
        network::{operator::NetworkOperator, spec::NetworkSpec},
    };

    #[tokio::test]
    async fn copy_has_the_proxy_and_its_password_only_with_secrets() {
        let (_home, manager) = manager_with(&["abcdefgh", "copyaaaa"]);
        let [parent, copy] = ["abcdefgh", "copyaaaa"].map(|id| manager.find(id).unwrap());
        let proxy = Some("socks5://me:hush@proxy.example:1080".parse().unwrap());
        let spec = NetworkSpec { proxy, ..NetworkSpec::default() };
        let mut record = NetworkRecord::of(&NetworkOperator::default(), &spec).unwrap();
        record.keep_values(&parent.directory).unwrap();
        record.write(&parent.directory).unwrap();
        for (secrets, user) in [(Secrets::Left, None), (Secrets::Inherited, Some("me"))] {
            let inherited = Inherited::of(&parent, secrets).await.unwrap().unwrap();
            inherited.write(&copy.directory).unwrap();
            let upstream = copy.upstream_proxy().unwrap().unwrap();
            assert_eq!((upstream.host.as_str(), upstream.user.as_deref()), ("proxy.example", user));
            let kept = copy.directory.read("network.secrets", 1 << 20).unwrap_or_default();
            assert_eq!(String::from_utf8(kept).unwrap().contains("hush"), user.is_some());
        }
    }
}
