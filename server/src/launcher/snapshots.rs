//! Snapshots and templates: what the sandboxes of a key can be made from.

use super::{
    Launcher,
    builds::template_of,
    operations::value,
    paging::page,
    views::{snapshot_row, template_row},
};
use crate::{
    access::keys::Key,
    channel::{
        failure::{Failure, Why},
        request::{Rows, SnapshotFilter},
    },
    registry::{error::RegistryError, lifecycle::Back},
    templates::SnapshotRecord,
};
use serde_json::Value;
use std::time::{Duration, SystemTime};

const MAX_NAME: usize = 128;
const MIB: u64 = 1 << 20;

impl Launcher {
    pub(super) async fn snapshot(
        &self,
        key: &Key,
        id: &str,
        name: Option<String>,
        memory: Option<bool>,
    ) -> Result<Value, Failure> {
        if let Some(name) = &name {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
            if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
                return Err(Failure::invalid(format!(
                    "invalid name: use 1-{MAX_NAME} characters from a-z, A-Z, 0-9 and -_./:"
                )));
            }
            if self.registry.templates.contains_key(name.as_str()) {
                return Err(Failure::invalid(format!(
                    "invalid name {name:?}: a template of this server has this name"
                )));
            }
        }
        let entry = self.find(key, id)?;
        let made = self.registry.snapshot(key, &entry, name, Back::with_memory(memory)).await?;
        value(&snapshot_row(&made))
    }

    /// A page of the key's snapshots, newest first.
    pub(super) fn snapshots(&self, key: &Key, filter: &SnapshotFilter) -> Result<Value, Failure> {
        let wanted = |snapshot: &SnapshotRecord| {
            filter.name.as_ref().is_none_or(|name| snapshot.names.contains(name))
                && filter.sandbox.as_ref().is_none_or(|id| snapshot.sandbox.as_str() == id)
        };
        let found: Vec<SnapshotRecord> = self.registry.snapshots(&key.id).into_iter().filter(wanted).collect();
        let (next, page) = page(&found, &filter.page, |snapshot| snapshot.id.as_str())?;
        value(&Rows { rows: page.iter().map(snapshot_row).collect(), next })
    }

    /// Removes a snapshot of the key. Configured templates are the operator's.
    pub(super) fn remove_snapshot(&self, key: &Key, id: &str) -> Result<Value, Failure> {
        if self.registry.remove_built(key, id)? || self.registry.remove_snapshot(key, id)? {
            return Ok(Value::Null);
        }
        if self.registry.templates.contains_key(id) {
            let message = format!("template {id} belongs to the configuration of the server");
            return Err(Failure::new(Why::Forbidden, message));
        }
        Err(Failure::new(Why::NotFound, format!("template {id} was not found")))
    }

    pub(super) fn templates(&self, key: &Key) -> Result<Value, Failure> {
        let allowed = |name: &str| key.limits.templates.is_empty() || key.limits.templates.contains(name);
        let configured = self.registry.templates.iter().filter(|(name, _)| allowed(name)).map(|(name, template)| {
            let config = &template.config;
            let made = SystemTime::UNIX_EPOCH;
            template_row(name, std::slice::from_ref(name), (config.cpus, config.memory, config.disk), made, true)
        });
        let machines = self.registry.manager.snapshots().map_err(RegistryError::from)?;
        let snapshots = self.registry.snapshots(&key.id);
        let own = snapshots.iter().filter_map(|snapshot| {
            let machine = machines.iter().find(|machine| machine.name.as_ref() == Some(&snapshot.id))?;
            let shape = (u32::from(machine.vcpus), machine.memory_bytes.mib(), machine.disk_bytes / MIB);
            let made = SystemTime::UNIX_EPOCH + Duration::from_millis(snapshot.created_at);
            Some(template_row(snapshot.id.as_str(), &snapshot.names, shape, made, false))
        });
        let built = self.registry.builds.templates.of(&key.id).into_iter();
        Ok(configured.chain(own).chain(built.map(|template| template_of(&template))).collect())
    }
}
