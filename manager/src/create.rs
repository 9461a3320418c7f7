//! Making a sandbox: everything checked first, its directory built in staging and renamed when whole, its VMM launched,
//! its agent awaited. Whatever fails, and whoever stops waiting, leaves nothing behind.

use crate::{
    admission::{self, AdmissionError},
    directory::{
        CONSOLE_LOG, CONTROL_SOCKET, DISK_LAYER, DirectoryError, STATUS, SandboxDirectory, VMM_LOG, VSOCK_SOCKET,
    },
    home::Home,
    last_words::LastWords,
    launch::{LaunchError, LaunchFiles, VmmProcess},
    lock,
    manager::Manager,
    names::{self, NameError},
    record::{FileRecord, RecordError, SandboxRecord},
    remove,
    sandbox::Sandbox,
    started::{StartError, StartedSandbox},
    sweep,
};
use sandboxvm_images::{
    bundle::{Bundle, BundleError, OpenBundle},
    template::{self, DiskSize, TemplateError},
};
use sandboxvm_protocol::{
    agent::{CText, CTextError},
    identity::{GuestCid, SandboxId, SandboxName},
    machine::{MIB, MemorySize, VcpuCount},
    vmm::{ConsoleConfig, DiskConfig, LaunchConfig, MachineSource, VsockConfig},
};
use std::{
    fs::File,
    io,
    os::unix::net::UnixListener,
    time::{Duration, SystemTime},
};

/// The serial console's log: a boot says little, a panic some kilobytes.
const CONSOLE_LOG_LIMIT: u64 = 1 << 20;
/// What a sandbox is to be.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its name, when it gets one.
    pub name: Option<SandboxName>,
    /// vCPUs.
    pub vcpus: VcpuCount,
    /// Guest memory.
    pub memory: MemorySize,
    /// Writable disk.
    pub disk: DiskSize,
    /// `KEY=VALUE`, given to every process started in it.
    pub env: Vec<String>,
    /// It belongs to the caller: it ends when the caller does, and a sweep removes what is left of it.
    pub ephemeral: bool,
    /// How long the guest may take from start to listening agent.
    pub boot_timeout: Duration,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            name: None,
            vcpus: VcpuCount::ONE,
            memory: MemorySize::try_from(256 * MIB).expect("256 MiB lies within the bounds"),
            disk: DiskSize::DEFAULT,
            env: Vec::new(),
            ephemeral: false,
            boot_timeout: Duration::from_secs(300),
        }
    }
}

/// Why no sandbox was made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The host cannot take it.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// Kernel, image, agent or VMM are missing or broken.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No writable disk.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// An environment string no process can have.
    #[error("environment {entry:?}: {problem}")]
    Environment {
        /// Which, cut short.
        entry: String,
        /// Why.
        problem: String,
    },
    /// The name is taken.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The VMM did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The machine did not come up.
    #[error("{cause}{last_words}")]
    Start {
        /// Why.
        cause: StartError,
        /// What its logs end with.
        last_words: LastWords,
    },
    /// The system gave no randomness for an ID.
    #[error("cannot make a sandbox ID: {0}")]
    Entropy(io::Error),
}

impl Manager {
    /// Makes a sandbox and waits until its agent listens. Cancel safe: a dropped future leaves nothing.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn create(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let mut started = self.start(bundle, spec).await?;
        match started.ready().await {
            Ok(()) => Ok(started),
            Err(error) => {
                // The cause is what the caller needs; what cannot be removed a sweep will name.
                let _ = started.finish().await;
                Err(error)
            }
        }
    }

    /// As [`Self::create`], but returns while the machine boots: [`StartedSandbox::ready`] waits for it. For callers
    /// who may change their mind meanwhile and want to see the end of it.
    ///
    /// # Errors
    /// Every [`CreateError`] but [`CreateError::Start`].
    pub async fn start(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        admission::check_memory(spec.memory)?;
        check_env(&spec.env)?;
        let open = bundle.open()?;
        let template = self.template(spec.disk).await?;
        let mut entropy = [0; 10];
        getrandom(&mut entropy).map_err(CreateError::Entropy)?;
        let record = record(SandboxId::from_entropy(entropy), spec, bundle, &open);

        let staged = Staged::begin(&self.home, record)?;
        let parts = staged.build()?;
        // Seen before it runs: a VMM must never live on in a directory that a sweep may take.
        let mut started = staged.publish(spec.boot_timeout)?;
        let vmm = parts.launch(&started.sandbox().record, &open, &template)?;
        started.launched(vmm);
        drop((open, template));
        // The VM boots: what is left of others can be taken away meanwhile.
        let home = self.home.clone();
        tokio::task::spawn_blocking(move || sweep::abandoned(&home));
        Ok(started)
    }

    async fn template(&self, size: DiskSize) -> Result<File, CreateError> {
        let directory = self.home.templates();
        if let Some(file) = template::existing(&directory, size)? {
            return Ok(file);
        }
        let made = tokio::task::spawn_blocking(move || template::open(&directory, size)).await;
        Ok(made.map_err(|e| DirectoryError::new("make a template in", self.home.templates(), io::Error::other(e)))??)
    }
}

fn getrandom(buffer: &mut [u8; 10]) -> io::Result<()> {
    let got = rustix::rand::getrandom(&mut *buffer, rustix::rand::GetRandomFlags::empty())?;
    // Up to 256 bytes come whole once the RNG is initialised (getrandom(2)).
    if got == buffer.len() { Ok(()) } else { Err(io::Error::other(format!("only {got} random bytes"))) }
}

fn check_env(env: &[String]) -> Result<(), CreateError> {
    for entry in env {
        let problem = match CText::try_from(entry.as_str()) {
            Err(error @ (CTextError::Nul(_) | CTextError::TooLong(_))) => error.to_string(),
            Ok(_) if !entry.contains('=') || entry.starts_with('=') => "is not KEY=VALUE".to_owned(),
            Ok(_) => continue,
        };
        return Err(CreateError::Environment { entry: entry.chars().take(40).collect(), problem });
    }
    Ok(())
}

fn record(id: SandboxId, spec: &SandboxSpec, bundle: &Bundle, open: &OpenBundle) -> SandboxRecord {
    SandboxRecord {
        format: SandboxRecord::FORMAT,
        id,
        name: spec.name.clone(),
        created_at: SystemTime::now(),
        vcpus: spec.vcpus,
        memory_bytes: spec.memory,
        disk_bytes: spec.disk.bytes(),
        kernel: FileRecord { path: bundle.kernel.clone(), identity: open.kernel_identity.clone() },
        image: FileRecord { path: bundle.image.clone(), identity: open.image_identity.clone() },
        agent: FileRecord { path: bundle.agent.clone(), identity: open.agent_identity.clone() },
        env: spec.env.clone(),
        ephemeral: spec.ephemeral,
    }
}

/// A sandbox that nobody can see yet; dropping it takes everything back.
struct Staged<'a> {
    home: &'a Home,
    directory: Option<SandboxDirectory>,
    record: SandboxRecord,
}

/// The files a VMM is handed, besides those that sandboxes share.
struct Parts {
    lock: File,
    status: File,
    console: File,
    vmm_log: File,
    layer: File,
    control: UnixListener,
    vsock: UnixListener,
}

impl<'a> Staged<'a> {
    fn begin(home: &'a Home, record: SandboxRecord) -> Result<Self, CreateError> {
        let directory = sweep::new_staged(home, &record.id)?;
        let staged = Self { home, directory: Some(directory), record };
        if let Some(name) = &staged.record.name {
            names::claim(home, name, &staged.record.id)?;
        }
        Ok(staged)
    }

    fn build(&self) -> Result<Parts, CreateError> {
        let directory = self.directory.as_ref().expect("taken only by publish, which consumes self");
        self.record.write(directory)?;
        Ok(Parts {
            lock: lock::create(directory)?,
            status: directory.create_file(STATUS)?,
            console: directory.create_file(CONSOLE_LOG)?,
            vmm_log: directory.create_file(VMM_LOG)?,
            layer: directory.create_file(DISK_LAYER)?,
            control: directory.listen(CONTROL_SOCKET)?,
            vsock: directory.listen(VSOCK_SOCKET)?,
        })
    }

    /// Makes it visible.
    fn publish(mut self, boot_timeout: Duration) -> Result<StartedSandbox, CreateError> {
        if self.record.ephemeral {
            let mark = self.home.ephemeral_mark(&self.record.id);
            File::create(&mark).map_err(|e| DirectoryError::new("create", mark, e))?;
        }
        let directory = self.directory.as_mut().expect("taken only below");
        directory.rename_to(self.home.sandbox(&self.record.id))?;
        let directory = self.directory.take().expect("was there a line ago");
        let sandbox = Sandbox { home: self.home.clone(), directory, record: self.record.clone() };
        Ok(StartedSandbox::new(sandbox, boot_timeout))
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            // The caller has a better error to report; a sweep takes what stays.
            let _ = remove::discard(self.home, directory, &self.record.id, self.record.name.as_ref());
        }
    }
}

impl Parts {
    /// Starts the VMM. Our copy of the lock closes when this value goes: from then on it is the VMM's alone.
    fn launch(self, record: &SandboxRecord, open: &OpenBundle, template: &File) -> Result<VmmProcess, CreateError> {
        let mut files = LaunchFiles::default();
        let config = LaunchConfig {
            sandbox: record.id.clone(),
            vcpus: record.vcpus,
            memory: record.memory_bytes,
            source: MachineSource::Boot { kernel: files.add(&open.kernel), cmdline_extra: String::new() },
            disks: vec![
                DiskConfig::ReadOnly { image: files.add(&open.agent) },
                DiskConfig::ReadOnly { image: files.add(&open.image) },
                DiskConfig::Writable { template: files.add(template), layers: vec![files.add(&self.layer)] },
            ],
            vsock: VsockConfig { listener: files.add(&self.vsock), cid: GuestCid::DEFAULT },
            console: ConsoleConfig { log: files.add(&self.console), limit: CONSOLE_LOG_LIMIT },
            control: files.add(&self.control),
            status: files.add(&self.status),
            lock: files.add(&self.lock),
            start: true,
            tie_to_launcher: record.ephemeral,
        };
        Ok(VmmProcess::launch(&open.vmm, self.vmm_log.try_clone().map_err(LaunchError::Channel)?, &config, &files)?)
    }
}
