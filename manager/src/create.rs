//! Making a sandbox: everything checked first, its directory built in staging and renamed when whole, its VMM launched
//! with a kernel to boot or a snapshot to go on from, its agent awaited. Whatever fails, and whoever stops waiting, leaves nothing behind.

use crate::{
    admission::AdmissionError,
    agent::AgentError,
    audit::{AuditError, Event},
    begin::{Disks, Restored, Visibility, boot, boot_disk, restore},
    content::{self, Content},
    control::ControlError,
    directory::DirectoryError,
    group::pool,
    host::{HostError, HostIdentity},
    last_words::LastWords,
    launch::LaunchError,
    limits::{Limits, WantedLimits},
    lineage::{Contents, LineageError},
    manager::Manager,
    named::NamedBasis,
    names::NameError,
    ready,
    record::{FileRecord, RecordError, SandboxRecord},
    sandbox::ExecError,
    snapshot::{error::SnapshotError, store::StoredSnapshot},
    staged::{Staged, new_id},
    started::{StartError, StartedSandbox},
    sweep,
};
use sandboxvm_images::{
    bundle::{Bundle, BundleError, OpenBundle, Part},
    identity::FileIdentity,
    template::{self, DiskSize, TemplateError},
};
use sandboxvm_protocol::{
    agent::{CText, CTextError, MAX_ARGUMENT_COUNT, MAX_ARGUMENTS_TOTAL},
    identity::SandboxName,
    machine::{MIB, MemorySize, VcpuCount},
    vmm::ExitReason,
};
use std::{
    fs::File,
    io,
    time::{Duration, SystemTime},
};

/// A name of one letter, with its NUL: what the variables must leave room for.
const SHORTEST_COMMAND: usize = 2;
/// Characters of a variable's name that are shown.
const SHOWN: usize = 40;

/// What a new sandbox goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// A snapshot of such a machine just booted, made on first use.
    #[default]
    Ready,
    /// Nothing: its kernel boots.
    Boot,
    /// A snapshot that was made before; vCPUs, memory and disk are then those of the snapshot.
    Snapshot(SandboxName),
    /// The disk of such a snapshot alone: its kernel boots from it, and nothing of memory and processes comes back.
    SnapshotDisk(SandboxName),
}

/// Everything that a new machine is made of, open and identified.
#[derive(Debug)]
pub(crate) struct Basis {
    pub(crate) open: OpenBundle,
    pub(crate) contents: Contents,
    pub(crate) template: File,
}

impl Basis {
    pub(crate) fn restored_from<'a>(&'a self, snapshot: &'a StoredSnapshot, host: &'a HostIdentity) -> Restored<'a> {
        let disks = Disks { agent: &self.open.agent, image: &self.open.image };
        Restored { snapshot, host, contents: &self.contents, disks }
    }
}

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
    /// What it goes on from.
    pub start_from: StartFrom,
    /// `KEY=VALUE`, given to every process started in it.
    pub env: Vec<String>,
    /// It belongs to the caller: it ends when the caller does, and a sweep removes what is left of it.
    pub ephemeral: bool,
    /// What it may have; never those of the snapshot it goes on from.
    pub limits: WantedLimits,
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
            start_from: StartFrom::default(),
            env: Vec::new(),
            ephemeral: false,
            limits: WantedLimits::default(),
            boot_timeout: Duration::from_secs(300),
        }
    }
}

/// Why no sandbox was made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The host cannot take it.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// Kernel, image, agent or VMM are missing or broken.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// No writable disk.
    #[error("{0}")]
    Template(#[from] TemplateError),
    /// A variable that no process can have.
    #[error("invalid environment variable {variable:?}: {problem}")]
    Environment {
        /// Its name, cut short; never its value, which may be a secret.
        variable: String,
        /// Why.
        problem: String,
    },
    /// The name is taken.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The record cannot be written.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No snapshot to start from.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The record of its files cannot be written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The host cannot be told from others.
    #[error("{0}")]
    Host(#[from] HostError),
    /// The VMM did not start.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The machine did not come up.
    #[error("{cause}{last_words}")]
    Start {
        /// Why.
        cause: StartError,
        /// What its logs end with.
        last_words: LastWords,
    },
    /// A machine restored ahead of its use.
    #[error("a machine of the pool does not respond: {0}")]
    Armed(ControlError),
    /// A machine that has to boot when it is wanted.
    #[error("cannot keep a machine in a pool that boots from the disk of a snapshot")]
    NotArmed,
    /// Its VMM does not keep what it may send, or how fast its disks are served.
    #[error("cannot enforce the limits of output and disks: {0}")]
    VmmLimits(ControlError),
    /// A machine that was to become a ready snapshot did not run what it was to.
    #[error("cannot warm up a new machine: {0}")]
    Warm(#[from] AgentError),
    /// The machine did not take its identity.
    #[error("cannot give the sandbox its identity: {0}")]
    Identity(Box<ExecError>),
    /// The system gave no randomness for an ID.
    #[error("cannot create an ID for the sandbox: {0}")]
    Entropy(io::Error),
    /// What cannot be logged is not done.
    #[error("{0}")]
    Audit(#[from] AuditError),
}

impl CreateError {
    /// True when a snapshot's own files are to blame.
    pub(crate) fn is_bad_snapshot(&self) -> bool {
        match self {
            Self::Start { cause: StartError::Ended(ExitReason::BadConfig { .. }), .. }
            | Self::Armed(ControlError::Ended(ExitReason::BadConfig { .. })) => true,
            Self::Snapshot(error) => error.is_damage(),
            _ => false,
        }
    }
}

impl Manager {
    /// Makes a sandbox and waits until its agent listens. Cancel safe: a dropped future leaves nothing.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn create(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let mut started = self.start(bundle, spec).await?;
        match started.settled().await {
            Ok(()) => Ok(started),
            Err(error) => {
                // The cause is what the caller needs; what cannot be removed a sweep will name.
                let _ = started.finish().await;
                Err(error)
            }
        }
    }

    /// As [`Self::create`], but returns while a machine that boots does so: [`StartedSandbox::settled`] waits for it.
    /// For callers who may change their mind meanwhile and want to see the end of it. The first machine of its kind
    /// takes as long as a boot before this returns. Cancel safe.
    ///
    /// # Errors
    /// Every [`CreateError`].
    pub async fn start(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        check_env(&spec.env)?;
        let started = match &spec.start_from {
            StartFrom::Boot => self.start_booting(bundle, spec).await,
            StartFrom::Ready => self.start_ready(bundle, spec).await,
            StartFrom::Snapshot(name) => self.start_named(bundle, spec, name).await,
            StartFrom::SnapshotDisk(name) => self.start_disk_of(bundle, spec, name).await,
        }?;
        let sandbox = started.sandbox();
        sandbox.trail().append(Event::created(&sandbox.record, (&spec.start_from).into()))?;
        // The VM runs: what is left of others can be taken away meanwhile.
        let home = self.home.clone();
        tokio::task::spawn_blocking(move || {
            let swept = sweep::abandoned(&home);
            // The next start finds a control group that is made.
            pool::fill(&home).and(swept)
        });
        Ok(started)
    }

    async fn start_booting(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let basis = self.basis(bundle, spec.disk).await?;
        let staged = Staged::begin(&self.home, new_record(spec, &basis)?)?;
        staged.admit()?;
        boot(staged, &basis, spec.boot_timeout, Visibility::Published)
    }

    /// From the snapshot of a machine of this kind that has just booted; made now if there is none yet.
    async fn start_ready(&self, bundle: &Bundle, spec: &SandboxSpec) -> Result<StartedSandbox, CreateError> {
        let basis = self.basis(bundle, spec.disk).await?;
        let host = HostIdentity::read()?;
        let key = ready::key(&basis.contents, spec, &host);
        let mut rebuilt = false;
        loop {
            // Before anything that takes long: its name is taken from here on, and its memory promised.
            let staged = Staged::begin(&self.home, new_record(spec, &basis)?)?;
            staged.admit()?;
            let snapshot = ready::ensure(&self.home, &key, &basis, spec).await?;
            let from = basis.restored_from(&snapshot, &host);
            let failure = match restore(staged, &from, &basis.open.vmm, spec.boot_timeout).await {
                Err(error) => error,
                Ok(mut started) => match started.ready().await {
                    Ok(()) => return Ok(started),
                    Err(error) => {
                        // The cause is what the caller needs; what cannot be removed a sweep will name.
                        let _ = started.finish().await;
                        error
                    }
                },
            };
            if rebuilt || !failure.is_bad_snapshot() {
                return Err(failure);
            }
            ready::remove(&self.home, &key)?;
            rebuilt = true;
        }
    }

    async fn start_named(
        &self,
        bundle: &Bundle,
        spec: &SandboxSpec,
        name: &SandboxName,
    ) -> Result<StartedSandbox, CreateError> {
        let basis = NamedBasis::read(self, bundle, name)?;
        let staged = Staged::begin(&self.home, basis.record(spec)?)?;
        staged.admit()?;
        let mut started = restore(staged, &basis.restored(), bundle.path(Part::Vmm), spec.boot_timeout).await?;
        match started.ready().await {
            Ok(()) => Ok(started),
            Err(error) => {
                let _ = started.finish().await;
                Err(error)
            }
        }
    }

    /// Boots from the disk of a snapshot. Returns while it does.
    async fn start_disk_of(
        &self,
        bundle: &Bundle,
        spec: &SandboxSpec,
        name: &SandboxName,
    ) -> Result<StartedSandbox, CreateError> {
        let basis = NamedBasis::read(self, bundle, name)?;
        let staged = Staged::begin(&self.home, basis.record(spec)?)?;
        staged.admit()?;
        let kernel = basis.kernel(&self.home, bundle)?;
        boot_disk(staged, &basis.restored(), &kernel, bundle.path(Part::Vmm), spec.boot_timeout).await
    }

    /// Opens and identifies everything that a new machine is made of.
    pub(crate) async fn basis(&self, bundle: &Bundle, disk: DiskSize) -> Result<Basis, CreateError> {
        let open = bundle.open()?;
        let template = self.template(disk).await?;
        // An image of some hundred MiB is read the first time.
        let (home, paths) = (self.home.clone(), bundle.clone());
        let hashed = tokio::task::spawn_blocking(move || {
            let contents = Contents {
                vmm: content::at(&home, &paths.vmm)?,
                kernel: content::of(&home, &open.kernel, &paths.kernel)?,
                image: content::of(&home, &open.image, &paths.image)?,
                agent: content::of(&home, &open.agent, &paths.agent)?,
            };
            Ok::<_, DirectoryError>((open, contents))
        });
        let (open, contents) =
            hashed.await.map_err(|e| DirectoryError::new("read", bundle.image.clone(), io::Error::other(e)))??;
        Ok(Basis { open, contents, template })
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

/// Refuses what no process could be started with.
pub(crate) fn check_env(env: &[String]) -> Result<(), CreateError> {
    let refused = |entry: &str, problem| {
        let name = entry.split('=').next().unwrap_or_default();
        Err(CreateError::Environment { variable: name.chars().take(SHOWN).collect(), problem })
    };
    for entry in env {
        match CText::try_from(entry.as_str()) {
            Err(error @ (CTextError::Nul(_) | CTextError::TooLong(_))) => return refused(entry, error.to_string()),
            Ok(_) if !entry.contains('=') || entry.starts_with('=') => {
                return refused(entry, "expected KEY=VALUE".to_owned());
            }
            Ok(_) => {}
        }
    }
    let total: usize = env.iter().map(|entry| entry.len() + 1).sum();
    let most = MAX_ARGUMENTS_TOTAL - SHORTEST_COMMAND;
    if total > most
        && let Some(longest) = env.iter().max_by_key(|entry| entry.len())
    {
        let problem = format!(
            "all variables together take {total} bytes, {} of them this one, and the maximum is {most}",
            longest.len() + 1
        );
        return refused(longest, problem);
    }
    if let Some(entry) = env.get(MAX_ARGUMENT_COUNT) {
        let problem = format!("{MAX_ARGUMENT_COUNT} variables come before it, and that is the maximum");
        return refused(entry, problem);
    }
    Ok(())
}

pub(crate) fn new_record(spec: &SandboxSpec, basis: &Basis) -> Result<SandboxRecord, CreateError> {
    let file = |content: &Content, identity: &FileIdentity| FileRecord {
        path: content.path.clone(),
        identity: identity.clone(),
    };
    let (open, contents) = (&basis.open, &basis.contents);
    Ok(SandboxRecord {
        format: SandboxRecord::FORMAT,
        id: new_id().map_err(CreateError::Entropy)?,
        name: spec.name.clone(),
        created_at: SystemTime::now(),
        vcpus: spec.vcpus,
        memory_bytes: spec.memory,
        disk_bytes: spec.disk.bytes(),
        kernel: file(&contents.kernel, &open.kernel_identity),
        image: file(&contents.image, &open.image_identity),
        agent: file(&contents.agent, &open.agent_identity),
        env: spec.env.clone(),
        ephemeral: spec.ephemeral,
        limits: Limits::new(spec.limits, spec.memory),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox;
    use sandboxvm_protocol::agent::ExecRequest;

    #[test]
    fn an_environment_with_which_nothing_can_run_is_refused_by_the_variables_name_alone() {
        let refused = |env: &[String]| check_env(env).unwrap_err().to_string();
        let long = |name: &str, bytes: usize| format!("{name}={}", "s".repeat(bytes - name.len() - 1));
        let one = refused(&["A=1".into(), long("KEY", 128 << 10)]);
        assert!(one.contains("\"KEY\"") && one.contains("131072 bytes") && !one.contains("sss"), "{one}");
        assert!(refused(&["KEY=\0secret".into()]).starts_with("invalid environment variable \"KEY\": contains a NUL"));
        assert!(refused(&["KEY".into()]).contains("expected KEY=VALUE"));
        assert!(refused(&["=x".into()]).contains("expected KEY=VALUE"));

        // To the byte: the shortest command fits beside what is accepted.
        let mut most: Vec<String> = (0..7).map(|n| long(&format!("K{n}"), 128 * 1024 - 1)).collect();
        most.push(long("LAST", 128 * 1024 - 3));
        check_env(&most).unwrap();
        let command = |argv| {
            let mut request = ExecRequest::plain(vec![CText::try_from(argv).unwrap()]);
            request.env = most.iter().map(|entry| CText::try_from(entry.as_str()).unwrap()).collect();
            sandbox::check_request(&request)
        };
        command("a").unwrap();
        command("ab").unwrap_err();
        most.push("X=".into());
        let sum = refused(&most);
        assert!(sum.contains("together take 1048577 bytes") && sum.contains("\"K6\""), "{sum}");

        let many: Vec<String> = (0..=MAX_ARGUMENT_COUNT).map(|n| format!("V{n}=")).collect();
        check_env(&many[1..]).unwrap();
        assert!(refused(&many).contains("\"V65536\": 65536 variables come before it"));
    }
}
