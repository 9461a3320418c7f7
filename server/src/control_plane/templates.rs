//! What sandboxes can be made from: the configured templates, and the key's snapshots.

use super::{error::ApiError, views::time};
use crate::{
    access::keys::Key,
    app::{ENVD_VERSION, SharedApp},
    registry::error::RegistryError,
};
use axum::{
    Extension, Json,
    extract::{Path, State},
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;

/// `GET /templates`.
pub(super) async fn list(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let allowed = |name: &str| key.limits.templates.is_empty() || key.limits.templates.contains(name);
    let configured = app.registry.templates.iter().filter(|(name, _)| allowed(name)).map(|(name, template)| {
        let config = &template.config;
        let made = SystemTime::UNIX_EPOCH;
        row(name, std::slice::from_ref(name), (config.cpus, config.memory, config.disk), made, true)
    });
    let machines = app.registry.manager.snapshots().map_err(RegistryError::from)?;
    let snapshots = app.registry.snapshots(&key.id);
    let own = snapshots.iter().filter_map(|snapshot| {
        let machine = machines.iter().find(|machine| machine.name.as_ref() == Some(&snapshot.id))?;
        let shape = (u32::from(machine.vcpus), machine.memory_bytes.mib(), machine.disk_bytes / MIB);
        let made = SystemTime::UNIX_EPOCH + Duration::from_millis(snapshot.created_at);
        Some(row(snapshot.id.as_str(), &snapshot.names, shape, made, false))
    });
    Ok(Json(configured.chain(own).collect()))
}

fn row(id: &str, names: &[String], (cpus, memory, disk): (u32, u64, u64), made: SystemTime, public: bool) -> Value {
    json!({
        "templateID": id, "buildID": id, "cpuCount": cpus, "memoryMB": memory, "diskSizeMB": disk, "public": public,
        "aliases": names, "names": names, "createdAt": time(made), "updatedAt": time(made), "createdBy": null,
        "lastSpawnedAt": null, "spawnCount": 0, "buildCount": 1, "envdVersion": ENVD_VERSION, "buildStatus": "ready",
    })
}

/// `GET /templates/aliases/{alias}`.
pub(super) async fn alias(
    State(app): State<SharedApp>,
    Extension(key): Extension<Key>,
    Path(alias): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (id, public) = app.registry.alias(&key, &alias)?;
    Ok(Json(json!({ "templateID": id, "public": public })))
}
