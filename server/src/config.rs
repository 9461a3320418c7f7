//! What a server is configured with. Read from a TOML file, the environment and flags by the program that runs it.

pub(crate) mod images;
pub(crate) mod network;

use crate::volumes::VolumeLimits;
use images::ImagesConfig;
use network::NetworkConfig;
use sandboxvm_images::template::DiskSize;
use sandboxvm_manager::{
    CpuShare, DiskLimits, DiskOperations, DiskRate, MIB, MachineError, MemorySize, OutputRate, ProcessCount,
    SandboxName, SandboxSpec, StartFrom, VcpuCount, WantedLimits,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// A server's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the control plane listens.
    pub api: SocketAddr,
    /// Where the sandboxes' own requests are taken.
    pub sandboxes: SocketAddr,
    /// Where `/metrics` is; nowhere unless given.
    pub metrics: Option<SocketAddr>,
    /// Base domain of `{port}-{id}.{domain}`, told to clients. Without one they use the address they were given.
    pub domain: Option<String>,
    /// Certificate chain and private key, PEM; both listeners then speak TLS alone.
    pub tls: Option<TlsFiles>,
    /// What sandboxes may reach on the network.
    pub network: NetworkConfig,
    /// What builds of templates may use.
    pub images: ImagesConfig,
    /// What sandboxes can be made from, besides snapshots. Without any: `base`.
    pub templates: BTreeMap<String, TemplateConfig>,
    /// Sandboxes of one key at a time, paused ones included, unless the key has its own number.
    pub sandboxes_per_key: u32,
    /// Snapshots of one key at a time, unless the key has its own number.
    pub snapshots_per_key: u32,
    /// What the sandboxes and snapshots of one key may take of the disk together, in MiB, unless the key has its own number.
    /// Checked before a snapshot, a pause and a fork; a sandbox that expires is paused regardless.
    pub storage_per_key: u64,
    /// What the audit logs of one key's sandboxes may take of the disk together, in MiB, unless the key has its own number;
    /// then it makes no more sandboxes.
    pub audit_per_key: u64,
    /// What the audit log of one sandbox may take, in MiB; then it runs nothing new.
    pub audit_per_sandbox: u64,
    /// How long the audit log of a sandbox that is gone stays, in days.
    pub audit_days: u32,
    /// Volumes of one key at a time, unless the key has its own number.
    pub volumes_per_key: u32,
    /// Maximum size of one volume, in MiB. Volumes that exist keep theirs.
    pub volume_size: u64,
    /// Maximum number of files, directories and links in one volume.
    pub volume_files: u64,
    /// Requests of one key to the control plane in a second, unless the key has its own number.
    pub requests_per_second: u32,
    /// Requests that are worked on at a time; more are answered with 429 and Retry-After.
    pub concurrent_requests: usize,
    /// The share of one key in them, on each of the two planes.
    pub concurrent_requests_per_key: usize,
    /// The share of one sandbox in them.
    pub concurrent_requests_per_sandbox: usize,
    /// Answers that are being sent and upgraded connections (WebSockets) of sandboxes at a time.
    pub streams: usize,
    /// The share of one key in them.
    pub streams_per_key: usize,
    /// The share of one sandbox in them.
    pub streams_per_sandbox: usize,
    /// Maximum number of sandboxes being started at a time, half of it for one key; further starts are queued.
    pub concurrent_starts: usize,
    /// Connections at a time on each listener.
    pub connections: usize,
    /// The share of one client address in them; raise it behind a proxy, from which all connections come.
    pub connections_per_address: usize,
    /// Ports of sandboxes with a token (`secure`) that want it in X-Access-Token: a code interpreter's executes code.
    pub token_ports: BTreeSet<u16>,
    /// Seconds that a request's message may take to arrive, and that an upload may pause.
    pub body_timeout: u64,
    /// Seconds from the last of a request to the beginning of its answer, and without a byte on an upgraded connection.
    pub answer_timeout: u64,
    /// Longest time a sandbox can be given, in seconds.
    pub longest_timeout: u64,
    /// Refuses to start where the host weakens the wall between guests. Held by the program that runs the server.
    pub strict: bool,
    /// How long requests in flight may take after the server was told to end, in seconds.
    pub shutdown_grace: u64,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate and those that vouch for it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What the sandboxes of a template are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemplateConfig {
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory: u64,
    /// Writable disk in MiB.
    pub disk: u64,
    /// A named snapshot to restore from; vCPUs, memory and disk are then those of the snapshot.
    pub snapshot: Option<String>,
    /// A container image of the home to start from, in place of the bundle's; its command is not started.
    pub image: Option<String>,
    /// Machines held ready, restored and waiting for their first instruction.
    pub pool: usize,
    /// Whose commands and files these are unless a request says otherwise.
    pub user: String,
    /// Processor time of a sandbox in hundredths of a processor; what its vCPUs can take unless given.
    pub cpu_share: Option<u32>,
    /// Bytes a second that a sandbox sends: output, files and ports together; no limit unless given.
    pub output_rate: Option<u64>,
    /// Processes and threads of a sandbox; four for each MiB of memory unless given, from 256 to 4096.
    pub processes: Option<u32>,
    /// Maximum rate at which the disks of one sandbox are served, in MiB per second; 0: no limit.
    pub disk_rate: u64,
    /// Maximum number of operations per second on the disks of one sandbox; 0: no limit.
    pub disk_ops: u64,
}

/// A template that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("template {template}: {problem}")]
pub struct TemplateConfigError {
    pub(crate) template: String,
    pub(crate) problem: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api: SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)),
            sandboxes: SocketAddr::from((Ipv4Addr::LOCALHOST, 3002)),
            metrics: None,
            domain: None,
            tls: None,
            network: NetworkConfig::default(),
            images: ImagesConfig::default(),
            templates: BTreeMap::from([("base".to_owned(), TemplateConfig::default())]),
            sandboxes_per_key: 100,
            snapshots_per_key: 100,
            storage_per_key: 64 << 10,
            audit_per_key: 4096,
            audit_per_sandbox: 128,
            audit_days: 30,
            volumes_per_key: 10,
            volume_size: 4096,
            volume_files: 200_000,
            requests_per_second: 50,
            concurrent_requests: 1024,
            concurrent_requests_per_key: 256,
            concurrent_requests_per_sandbox: 128,
            streams: 8192,
            streams_per_key: 2048,
            streams_per_sandbox: 256,
            concurrent_starts: 4,
            connections: 4096,
            connections_per_address: 1024,
            token_ports: BTreeSet::from([49999]),
            body_timeout: 60,
            answer_timeout: 600,
            longest_timeout: 24 * 3600,
            strict: false,
            shutdown_grace: 10,
        }
    }
}

impl Config {
    /// What volumes of one key may be.
    pub(crate) fn volume_limits(&self) -> VolumeLimits {
        VolumeLimits { volumes: self.volumes_per_key, mib: self.volume_size, names: self.volume_files }
    }
}

impl Default for TemplateConfig {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 256,
            disk: 2048,
            snapshot: None,
            image: None,
            pool: 0,
            user: "user".to_owned(),
            cpu_share: None,
            output_rate: None,
            processes: None,
            disk_rate: 512,
            disk_ops: 20_000,
        }
    }
}

impl TemplateConfig {
    /// The machine it asks for.
    ///
    /// # Errors
    /// When no machine can be like that.
    pub(crate) fn spec(&self, template: &str) -> Result<SandboxSpec, TemplateConfigError> {
        let wrong = |problem: String| TemplateConfigError { template: template.to_owned(), problem };
        let bytes = |mib: u64| mib.saturating_mul(MIB);
        if self.snapshot.is_some() && self.image.is_some() {
            return Err(wrong("it has a snapshot and an image, expected one of them".to_owned()));
        }
        let start_from = match &self.snapshot {
            None => StartFrom::Ready,
            Some(name) => {
                StartFrom::Snapshot(SandboxName::try_from(name.clone()).map_err(|error| wrong(error.to_string()))?)
            }
        };
        Ok(SandboxSpec {
            vcpus: VcpuCount::try_from(self.cpus).map_err(|error| wrong(error.to_string()))?,
            memory: MemorySize::try_from(bytes(self.memory)).map_err(|error| wrong(error.to_string()))?,
            disk: DiskSize::try_from(bytes(self.disk)).map_err(|error| wrong(error.to_string()))?,
            start_from,
            limits: WantedLimits {
                processes: self
                    .processes
                    .map(ProcessCount::try_from)
                    .transpose()
                    .map_err(|error| wrong(error.to_string()))?,
                cpu_share: self
                    .cpu_share
                    .map(CpuShare::try_from)
                    .transpose()
                    .map_err(|error| wrong(error.to_string()))?,
                output_rate: self
                    .output_rate
                    .map(OutputRate::try_from)
                    .transpose()
                    .map_err(|error| wrong(error.to_string()))?,
                disk: self.disk_limits().map_err(|error| wrong(error.to_string()))?,
                ..WantedLimits::default()
            },
            boot_timeout: BOOT_TIMEOUT,
            ..SandboxSpec::default()
        })
    }

    /// How fast the disks of its sandboxes are served.
    ///
    /// # Errors
    /// When a rate is out of range.
    fn disk_limits(&self) -> Result<DiskLimits, MachineError> {
        let limited = |value: u64| Some(value).filter(|value| *value > 0);
        let rate = limited(self.disk_rate).map(|mib| DiskRate::try_from(mib.saturating_mul(MIB))).transpose()?;
        let operations = limited(self.disk_ops).map(DiskOperations::try_from).transpose()?;
        Ok(DiskLimits { rate, operations })
    }
}

/// The first machine of a kind boots, where the guest's kernel may be interpreted.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::{
        network::{NamedPart, Reachable},
        *,
    };

    /// Every line of the example that is no comment, and the comments that are settings.
    #[test]
    fn the_example_shows_the_defaults() {
        let text = include_str!("../../deploy/server.toml");
        // A new configuration has a network; one without the setting has none, as before there was one.
        let network = NetworkConfig { default: Some(Reachable::Named(NamedPart::Public)), ..NetworkConfig::default() };
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config { network, ..Config::default() });
        let settings = text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
        let is_setting = |line: &&str| line.starts_with('[') || line.split(' ').nth(1) == Some("=");
        let all: Vec<&str> = settings.filter(is_setting).collect();
        let config: Config = toml::from_str(&all.join("\n")).unwrap();
        assert!(config.network.permits.is_some() && config.network.network().is_ok());
        assert!(config.tls.is_some() && config.templates["code-interpreter"].snapshot.is_some());
        assert!(toml::from_str::<Config>("apis = 1").is_err(), "what is no setting is refused");
    }

    #[test]
    fn disks_have_a_rate_unless_the_template_says_otherwise() {
        let disk = |config: TemplateConfig| config.spec("base").unwrap().limits.disk;
        let usual = disk(TemplateConfig::default());
        assert_eq!(usual.rate.map(|rate| rate.bytes_per_second()), Some(512 << 20));
        assert_eq!(usual.operations.map(|operations| operations.per_second()), Some(20_000));
        let none = TemplateConfig { disk_rate: 0, disk_ops: 0, ..TemplateConfig::default() };
        assert!(disk(none).is_unlimited());
    }

    #[test]
    fn what_no_machine_can_be_is_refused_by_name() {
        TemplateConfig::default().spec("base").unwrap();
        for wrong in [
            TemplateConfig { cpus: 0, ..TemplateConfig::default() },
            TemplateConfig { memory: 1, ..TemplateConfig::default() },
            TemplateConfig { memory: u64::MAX, ..TemplateConfig::default() },
            TemplateConfig { cpu_share: Some(0), ..TemplateConfig::default() },
            TemplateConfig { output_rate: Some(1), ..TemplateConfig::default() },
            TemplateConfig { processes: Some(0), ..TemplateConfig::default() },
            TemplateConfig { snapshot: Some("../x".into()), ..TemplateConfig::default() },
            TemplateConfig { snapshot: Some("x".into()), image: Some("x".into()), ..TemplateConfig::default() },
            TemplateConfig { disk_ops: 1, ..TemplateConfig::default() },
            TemplateConfig { disk_rate: u64::MAX, ..TemplateConfig::default() },
        ] {
            let message = wrong.spec("mine").unwrap_err().to_string();
            assert!(message.starts_with("template mine: "), "{message}");
        }
    }
}
