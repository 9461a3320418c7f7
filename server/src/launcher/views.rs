//! Sandboxes as E2B's clients read them.

use super::Launcher;
use crate::{
    access::{keys::Key, tokens::Scope},
    app::ENVD_VERSION,
    registry::{
        entry::Entry,
        error::RegistryError,
        record::{OnTimeout, Phase, Record},
    },
    templates::SnapshotRecord,
    volumes::{MountedVolume, WantedMount},
};
use sandboxvm_manager::{FindError, SandboxRecord};
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::SystemTime};

const MIB: u64 = 1 << 20;
/// E2B's name for the machine a sandbox is on; there is one.
const CLIENT_ID: &str = "sandboxvm";

/// What identifies a sandbox.
#[derive(Debug, Serialize)]
struct Ids {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
}

impl Ids {
    fn of(entry: &Entry, record: &Record) -> Self {
        let (template_id, sandbox_id) = (record.template.0.clone(), entry.id.to_string());
        Self { template_id, sandbox_id, client_id: CLIENT_ID }
    }
}

/// What create, connect and fork answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Created {
    #[serde(flatten)]
    ids: Ids,
    envd_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traffic_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

pub(super) fn created(launcher: &Launcher, entry: &Entry) -> Created {
    let record = entry.record();
    let token =
        |scope, wanted: bool| wanted.then(|| launcher.credentials.tokens.of(scope, &entry.id, record.token_generation));
    Created {
        ids: Ids::of(entry, &record),
        envd_version: ENVD_VERSION,
        envd_access_token: token(Scope::Envd, record.secure),
        traffic_access_token: token(Scope::Traffic, !record.public_traffic),
        domain: launcher.config.domain.clone(),
    }
}

/// One row of a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    #[serde(flatten)]
    ids: Ids,
    alias: String,
    started_at: String,
    end_at: String,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u64,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u64,
    envd_version: &'static str,
    metadata: BTreeMap<String, String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    volume_mounts: Vec<WantedMount>,
}

/// Everything of one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Detail {
    #[serde(flatten)]
    listed: Listed,
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    allow_internet_access: Option<bool>,
    network: Value,
    lifecycle: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_mode: Option<&'static str>,
}

/// Nothing when it is gone meanwhile.
pub(super) fn listed(launcher: &Launcher, entry: &Entry) -> Result<Option<Listed>, RegistryError> {
    let machine = match launcher.registry.manager.find(entry.id.as_str()) {
        Ok(sandbox) => sandbox.record().clone(),
        Err(FindError::Unknown(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(row(entry, &entry.record(), &machine)))
}

fn row(entry: &Entry, record: &Record, machine: &SandboxRecord) -> Listed {
    Listed {
        ids: Ids::of(entry, record),
        alias: record.template.0.clone(),
        started_at: time(record.started_at),
        end_at: time(record.end_at),
        cpu_count: u32::from(machine.vcpus),
        memory_mb: machine.memory_bytes.mib(),
        disk_size_mb: machine.disk_bytes / MIB,
        envd_version: ENVD_VERSION,
        metadata: record.metadata.clone(),
        state: state(record),
        volume_mounts: record.volumes.iter().map(mount).collect(),
    }
}

fn mount(volume: &MountedVolume) -> WantedMount {
    WantedMount { name: volume.name.clone(), path: volume.path.clone() }
}

/// Nothing when it is gone meanwhile.
pub(super) fn detail(launcher: &Launcher, key: &Key, entry: &Entry) -> Result<Option<Detail>, RegistryError> {
    let record = entry.record();
    let pause_mode = match record.phase {
        Phase::Running => None,
        Phase::Paused { .. } => Some("full"),
        Phase::PausedFilesystem => Some("filesystem"),
    };
    let Some(listed) = listed(launcher, entry)? else { return Ok(None) };
    let on_timeout = match record.on_timeout {
        OnTimeout::Kill => "kill",
        OnTimeout::Pause | OnTimeout::PauseFilesystem => "pause",
    };
    Ok(Some(Detail {
        listed,
        // Who has it runs commands, which a key that only looks may not.
        envd_access_token: (record.secure && !key.limits.read_only)
            .then(|| launcher.credentials.tokens.of(Scope::Envd, &entry.id, record.token_generation)),
        domain: launcher.config.domain.clone(),
        allow_internet_access: record.allow_internet_access,
        network: network(&record, !key.limits.read_only)?,
        lifecycle: json!({ "autoResume": record.auto_resume, "onTimeout": on_timeout }),
        pause_mode,
    }))
}

/// What its client said of the network. Headers of rules are secrets, which a key that only looks does not get.
fn network(record: &Record, with_headers: bool) -> Result<Value, RegistryError> {
    let egress = record.egress.shown();
    let egress = if with_headers { egress } else { egress.of_copy() };
    let mut network = serde_json::to_value(egress).map_err(|error| RegistryError::Task(error.into()))?;
    network["allowPublicTraffic"] = json!(record.public_traffic);
    if let Some(mask) = record.ingress.mask_request_host() {
        network["maskRequestHost"] = json!(mask);
    }
    if !record.ingress.https_ports().is_empty() {
        network["httpsPorts"] = json!(record.ingress.https_ports());
    }
    Ok(network)
}

pub(super) fn state(record: &Record) -> &'static str {
    if record.is_paused() { "paused" } else { "running" }
}

/// RFC 3339, to the millisecond.
pub(super) fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A snapshot as clients read it.
pub(super) fn snapshot_row(snapshot: &SnapshotRecord) -> Value {
    json!({ "snapshotID": snapshot.id.as_str(), "names": snapshot.names })
}

/// A template, or a snapshot as one: vCPUs, MiB of memory and of disk.
pub(super) fn template_row(
    id: &str,
    names: &[String],
    (cpus, memory, disk): (u32, u64, u64),
    made: SystemTime,
    public: bool,
) -> Value {
    json!({
        "templateID": id, "buildID": id, "cpuCount": cpus, "memoryMB": memory, "diskSizeMB": disk, "public": public,
        "aliases": names, "names": names, "createdAt": time(made), "updatedAt": time(made), "createdBy": null,
        "lastSpawnedAt": null, "spawnCount": 0, "buildCount": 1, "envdVersion": ENVD_VERSION, "buildStatus": "ready",
    })
}
