//! Putting a sandbox back to where it began, or to a snapshot. In place where its VMM began from that very snapshot;
//! otherwise its VMM is replaced, and directory, ID and name stay.

use crate::{
    admission::{self, AdmissionError},
    audit::Event,
    content::{self, Content},
    control::ControlError,
    create::CreateError,
    directory::{DirectoryError, SandboxDirectory},
    end::{self, EndError},
    ending::{self, Interruption},
    host::{self, HostIdentity},
    identity,
    in_use::{InUse, InUseError},
    launch::{LaunchError, LaunchFiles},
    lineage::{
        ChangeLock, Contents, Files, Kind, Lineage, LineageError, Origin, TEMPLATE, free_name, keep_disks, open_all,
    },
    parts::{MachineFiles, Parts, SourceFiles},
    room::Room,
    sandbox::{ExecError, Sandbox},
    snapshot::{
        error::SnapshotError,
        store::{ReadOnlyDisks, StoredSnapshot, find_disk},
    },
    started,
    supervision::SuperviseError,
    wire::WireError,
};
use rustix::fs::OFlags;
use sandboxvm_images::bundle::{Bundle, BundleError, Part};
use sandboxvm_protocol::{
    identity::{SandboxId, SandboxName},
    machine::{MIB, MemorySize, VcpuCount},
    vmm::{ControlReply, ControlRequest, DiskLayers, ResetReport, ResetRequest},
};
use std::{fs::File, path::PathBuf, time::Duration};
use tokio::time::timeout;

/// Some milliseconds; this is for a host that swaps.
const RESET_WITHIN: Duration = Duration::from_secs(60);

/// Why a sandbox was not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// It began in the middle of another's run.
    #[error("cannot reset sandbox {sandbox} to its start: it is a fork of {of}, which was already running")]
    Fork {
        /// Its name, else its ID.
        sandbox: String,
        /// What it was forked from.
        of: SandboxId,
    },
    /// The snapshot is of another kind of machine.
    #[error(
        "cannot reset sandbox {sandbox} to snapshot {snapshot}: the snapshot is of a machine with {theirs}, and the sandbox \
         has {ours}"
    )]
    OtherMachine {
        /// Its name, else its ID.
        sandbox: String,
        /// Its shape.
        ours: String,
        /// Name of the snapshot.
        snapshot: SandboxName,
        /// Its shape.
        theirs: String,
    },
    /// It rests on disk, and is to continue where it stopped.
    #[error("cannot reset sandbox {0}: it is paused on disk and can only be resumed or removed")]
    Parked(String),
    /// A `run` attends it and removes it when its VMM ends.
    #[error(
        "cannot reset sandbox {0} to another snapshot than the one it started from: it ends with the command that it runs"
    )]
    Attended(String),
    /// The kernel it booted was replaced.
    #[error("cannot reset sandbox {sandbox}: the guest kernel {} was replaced since it booted", .path.display())]
    OtherKernel {
        /// Its name, else its ID.
        sandbox: String,
        /// Where the kernel was.
        path: PathBuf,
    },
    /// The host cannot take it again.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// No such snapshot, or none that can be used.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The sandbox's own record.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The VMM refused or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// Kernel, image, agent or VMM are missing or broken.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// Its VMM does not end.
    #[error(transparent)]
    End(#[from] EndError),
    /// The new VMM did not start.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The new machine did not come up.
    #[error("{0}; the sandbox is stopped")]
    Start(Box<CreateError>),
    /// The machine did not take its identity.
    #[error("cannot give the sandbox its identity: {0}")]
    Identity(Box<ExecError>),
    /// The machine does not answer.
    #[error("the sandbox was reset, but its guest agent did not respond within {} s", .0.as_secs())]
    Silent(Duration),
    /// What is kept up for it cannot begin anew.
    #[error("{0}")]
    Supervision(#[from] SuperviseError),
    /// It was paused because nobody used it, and does not go on.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// How a sandbox was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetDone {
    /// Its VMM put the machine back.
    InPlace(ResetReport),
    /// Its VMM was replaced by another.
    Anew,
}

/// Whether a sandbox that rests on disk may be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parked {
    Allowed,
    Refused,
}

/// Where a sandbox is put back to.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// Where it began.
    Beginning,
    Snapshot(&'a SandboxName),
    /// Its own disk as it is, without memory.
    OwnDisk,
}

/// The same, found: what the new machine is restored from.
enum Found<'a> {
    Beginning,
    Snapshot(&'a SandboxName, &'a StoredSnapshot),
    OwnDisk,
}

/// What a machine begins from.
struct Beginning {
    contents: Contents,
    origin: Origin,
    parent: Option<SandboxId>,
    files: Files,
    layers: Vec<File>,
    source: Source,
}

enum Source {
    Kernel(File),
    Snapshot { state: File, memory: Vec<File> },
}

impl Sandbox {
    /// Puts everything back: memory, disk, processes. Without `snapshot` to where the sandbox began; one that does not
    /// run begins anew. Its open connections are gone.
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn reset(
        &self,
        bundle: &Bundle,
        snapshot: Option<&SandboxName>,
        boot_timeout: Duration,
    ) -> Result<ResetDone, ResetError> {
        let to = snapshot.map_or(Place::Beginning, Place::Snapshot);
        self.put_back(bundle, to, boot_timeout, Parked::Refused, || ()).await
    }

    /// Brings a sandbox back that rests on disk (see [`Self::park`]), to the snapshot that it was put to rest with.
    /// `host_is_done` is called as soon as only the guest is waited for: nothing that others share is to be held from then
    /// on, since a guest takes its time as it pleases.
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn resume_from(
        &self,
        bundle: &Bundle,
        snapshot: &SandboxName,
        boot_timeout: Duration,
        host_is_done: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        self.put_back(bundle, Place::Snapshot(snapshot), boot_timeout, Parked::Allowed, host_is_done).await
    }

    /// Boots a sandbox that rests on disk from its own disk, as it was left: nothing of its memory and processes comes
    /// back. `host_is_done` as in [`Self::resume_from`].
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn resume_from_disk(
        &self,
        bundle: &Bundle,
        boot_timeout: Duration,
        host_is_done: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        self.put_back(bundle, Place::OwnDisk, boot_timeout, Parked::Allowed, host_is_done).await
    }

    async fn put_back(
        &self,
        bundle: &Bundle,
        to: Place<'_>,
        boot_timeout: Duration,
        parked: Parked,
        host_is_done: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        let snapshot = match to {
            Place::Snapshot(name) => Some(name),
            Place::Beginning | Place::OwnDisk => None,
        };
        let named = snapshot.map(|name| StoredSnapshot::named(&self.home, name)).transpose()?;
        let _in_use = InUse::begin(&self.directory).await?;
        let change = ChangeLock::take(&self.directory).await?;
        if parked == Parked::Refused && self.is_parked() {
            return Err(ResetError::Parked(self.label()));
        }
        let is_live = self.state()?.is_live();
        if is_live {
            // See `Lineage::read`.
            self.control().await?.stats().await?;
        }
        let mut lineage = Lineage::read(&self.directory)?;
        let began_from = match &lineage.origin {
            Origin::Snapshot { id, .. } if !lineage.rebooted => Some(id.clone()),
            Origin::Snapshot { .. } | Origin::Boot | Origin::Fork { .. } => None,
        };
        let named = named.filter(|named| began_from.as_ref() != Some(&named.manifest.id));
        if is_live {
            // What the sandbox writes is kept until the new beginning is there.
            admission::check_room(&self.home, 0)?;
        }
        self.note_end()?;
        let mut host_is_done = Some(host_is_done);
        let mut only_the_guest = || {
            if let Some(host_is_done) = host_is_done.take() {
                host_is_done();
            }
        };
        let in_place = is_live && named.is_none() && began_from.is_some() && !matches!(to, Place::OwnDisk);
        let done = if in_place {
            ResetDone::InPlace(self.reset_in_place(&mut lineage).await?)
        } else {
            let from = match (to, snapshot.zip(named.as_ref())) {
                (Place::OwnDisk, _) => Found::OwnDisk,
                (_, Some((name, snapshot))) => Found::Snapshot(name, snapshot),
                (_, None) => Found::Beginning,
            };
            self.begin_again(bundle, &lineage, from, boot_timeout, &mut only_the_guest).await?;
            if !is_live {
                self.start_time_anew()?;
            }
            ResetDone::Anew
        };
        // Somebody's command may have told the machine that was who it is, and taken the mark away.
        identity::make_due(&self.directory)?;
        self.trail().note(Event::Reset { to: snapshot.cloned() });
        // An agent out of a snapshot may be anybody's: it must not keep others from changing the sandbox.
        drop(change);
        only_the_guest();
        let is_restored = !matches!(to, Place::OwnDisk) && (snapshot.is_some() || began_from.is_some());
        let restored_within = host::restored_agent_answers_within().min(boot_timeout);
        let within = if is_restored { restored_within } else { boot_timeout };
        match timeout(within, self.settle()).await {
            Ok(settled) => settled.map_err(|error| ResetError::Identity(Box::new(error)))?,
            Err(_) => return Err(ResetError::Silent(within)),
        }
        Ok(done)
    }

    async fn reset_in_place(&self, lineage: &mut Lineage) -> Result<ResetReport, ResetError> {
        let directory = &self.directory;
        let Origin::Snapshot { state, memory, disk, .. } = &lineage.origin else {
            unreachable!("called for sandboxes that began from a snapshot")
        };
        let state = directory.open_shared(state)?;
        let top_name = free_name(directory, Kind::Disk)?;
        let next =
            Files { disk: disk.iter().cloned().chain([top_name.clone()]).collect(), baseline: Some(memory.clone()) };
        let mut layers = open_all(directory, disk)?;
        lineage.check_origin(directory).await?;
        layers.push(directory.create_file(&top_name)?);
        let announced = identity::make_due(directory)
            .map_err(LineageError::from)
            .and_then(|()| lineage.announce(directory, next.clone()));
        if let Err(error) = announced {
            // On a full disk: the VMM was not asked for anything yet. A file that stays is taken away by the next change.
            let _ = directory.unlink(&top_name);
            return Err(error.into());
        }
        ending::announce(directory, Interruption::Reset);
        let mut sent = LaunchFiles::default();
        let request = ControlRequest::Reset(ResetRequest {
            state: sent.add(&state),
            disks: vec![DiskLayers(layers.iter().map(|layer| sent.add(layer)).collect())],
        });
        match self.control().await?.request_with(&request, &sent, RESET_WITHIN).await? {
            ControlReply::Reset(report) => {
                // Where the disk has no room for the record, the one that announced this says the same.
                let _ = lineage.complete(directory, next);
                Ok(report)
            }
            ControlReply::Failed { message } => {
                ending::withdraw(directory);
                // Where this cannot be written down, what was announced is judged again next time.
                let _ = lineage.conclude(directory);
                Err(ControlError::Refused(message).into())
            }
            _ => Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
        }
    }

    /// Ends the VMM and starts another in its place.
    async fn begin_again(
        &self,
        bundle: &Bundle,
        lineage: &Lineage,
        from: Found<'_>,
        boot_timeout: Duration,
        only_the_guest: &mut (impl FnMut() + Send),
    ) -> Result<(), ResetError> {
        // A `prune` must not take the directory while nothing runs in it.
        let own = SandboxDirectory::open(self.directory.path().to_owned())?;
        if !own.try_claim()? {
            return Err(ResetError::Attended(self.label()));
        }
        // Everything that can be refused is refused while the old machine still runs.
        let beginning = match from {
            Found::Snapshot(name, snapshot) => self.beginning_of(name, snapshot).await?,
            Found::Beginning => self.beginning(bundle, lineage).await?,
            Found::OwnDisk => self.own_disk(bundle, lineage)?,
        };
        let mut contents = beginning.contents.clone();
        let ReadOnlyDisks { agent: (agent, _), image: (image, _) } = match from {
            Found::Snapshot(_, snapshot) => snapshot.read_only_disks(&self.home, bundle)?,
            Found::Beginning | Found::OwnDisk => ReadOnlyDisks {
                agent: find_disk(&self.home, &self.directory, bundle, Part::Agent, &contents.agent)?,
                image: find_disk(&self.home, &self.directory, bundle, Part::Image, &contents.image)?,
            },
        };
        bundle.open_part(Part::Vmm)?;
        let template = self.directory.open_shared(TEMPLATE)?;

        if !self.state()?.is_live() {
            // It was promised no memory any more; its disk it has.
            admission::admit(&self.home, self.id(), self.record.memory_bytes, 0)?;
        }
        let room = Room::for_a_start(&self.directory)?;
        ending::announce(&self.directory, Interruption::Reset);
        end::now(&self.home, &self.directory, self.id()).await?;
        drop(room);
        identity::make_due(&self.directory)?;
        let parts = Parts::renew(&self.directory)?;
        let vmm = parts.spawn_vmm(&self.home, &self.directory, &self.record, bundle.path(Part::Vmm))?;
        contents.vmm = content::at(&self.home, bundle.path(Part::Vmm))?;
        let Beginning { origin, parent, files, layers, source, .. } = beginning;
        let seals = match from {
            Found::Snapshot(_, snapshot) => snapshot.seals_as(&origin),
            Found::Beginning | Found::OwnDisk => lineage.seals.clone(),
        };
        let mut renewed = Lineage::new(contents, origin, parent, files.clone()).with_seals(seals);
        if let Found::OwnDisk = from {
            renewed = renewed.rebooted();
        }
        renewed.complete(&self.directory, files)?;
        keep_disks(&self.directory, &agent, &image)?;
        let machine = MachineFiles {
            source: match &source {
                Source::Kernel(kernel) => SourceFiles::Boot { kernel },
                Source::Snapshot { state, memory } => SourceFiles::Snapshot { state, memory },
            },
            agent: &agent,
            image: &image,
            template: &template,
            layers: &layers,
            tie_to_launcher: false,
            start: true,
        };
        parts.hand_over(&vmm, &self.record, &machine)?;
        if let Source::Kernel(_) = source {
            // A boot reads what a guest wrote to its disk, and takes as long as that makes it.
            only_the_guest();
        }
        started::attend(self, vmm, boot_timeout).await.map_err(|error| ResetError::Start(Box::new(error)))
    }

    /// The disk as its last machine left it, for a kernel that boots.
    fn own_disk(&self, bundle: &Bundle, lineage: &Lineage) -> Result<Beginning, ResetError> {
        let directory = &self.directory;
        let files = Files { disk: lineage.files.disk.clone(), baseline: Some(Vec::new()) };
        let mut layers = Vec::new();
        if let [below @ .., top] = &files.disk[..] {
            layers = open_all(directory, below)?;
            layers.push(directory.open_file(top, OFlags::RDWR)?);
        }
        Ok(Beginning {
            contents: lineage.contents.clone(),
            origin: lineage.origin.clone(),
            parent: None,
            files,
            layers,
            source: Source::Kernel(self.same_kernel(bundle, &lineage.contents.kernel)?),
        })
    }

    /// Where this sandbox itself began.
    async fn beginning(&self, bundle: &Bundle, lineage: &Lineage) -> Result<Beginning, ResetError> {
        let directory = &self.directory;
        let top_name = free_name(directory, Kind::Disk)?;
        let top = directory.create_file(&top_name)?;
        match &lineage.origin {
            Origin::Fork { of } => Err(ResetError::Fork { sandbox: self.label(), of: of.clone() }),
            Origin::Boot => Ok(Beginning {
                contents: lineage.contents.clone(),
                origin: Origin::Boot,
                parent: None,
                files: Files { disk: vec![top_name], baseline: Some(Vec::new()) },
                layers: vec![top],
                source: Source::Kernel(self.same_kernel(bundle, &lineage.contents.kernel)?),
            }),
            Origin::Snapshot { id, state, memory, disk, .. } => {
                lineage.check_origin(directory).await?;
                let mut layers = open_all(directory, disk)?;
                layers.push(top);
                Ok(Beginning {
                    contents: lineage.contents.clone(),
                    origin: lineage.origin.clone(),
                    parent: Some(id.clone()),
                    files: Files {
                        disk: disk.iter().cloned().chain([top_name]).collect(),
                        baseline: Some(memory.clone()),
                    },
                    layers,
                    source: Source::Snapshot {
                        state: directory.open_shared(state)?,
                        memory: open_all(directory, memory)?,
                    },
                })
            }
        }
    }

    /// Where `snapshot` is, with its files linked here. What is linked and not used is taken away by the next change.
    async fn beginning_of(&self, name: &SandboxName, snapshot: &StoredSnapshot) -> Result<Beginning, ResetError> {
        let (manifest, record) = (&snapshot.manifest, &self.record);
        let shape = |vcpus: VcpuCount, memory: MemorySize, disk: u64| {
            format!("{vcpus} vCPUs, {} MiB of memory and {} MiB of disk", memory.mib(), disk / MIB)
        };
        let theirs = shape(manifest.vcpus, manifest.memory_bytes, manifest.disk_bytes);
        let ours = shape(record.vcpus, record.memory_bytes, record.disk_bytes);
        if theirs != ours {
            return Err(ResetError::OtherMachine { sandbox: self.label(), ours, snapshot: name.clone(), theirs });
        }
        let files = snapshot.files(&HostIdentity::read().map_err(SnapshotError::from)?).await?;
        let origin = snapshot.link_into(&self.directory)?;
        let Origin::Snapshot { id, memory, disk, .. } = &origin else { unreachable!("link_into makes no other") };
        let top_name = free_name(&self.directory, Kind::Disk)?;
        let mut layers = files.disk;
        layers.push(self.directory.create_file(&top_name)?);
        Ok(Beginning {
            contents: manifest.contents.clone(),
            parent: Some(id.clone()),
            files: Files { disk: disk.iter().cloned().chain([top_name]).collect(), baseline: Some(memory.clone()) },
            layers,
            source: Source::Snapshot { state: files.state, memory: files.memory },
            origin,
        })
    }

    /// Opens the very kernel that the sandbox was booted from: where it was, else the bundle's.
    fn same_kernel(&self, bundle: &Bundle, content: &Content) -> Result<File, ResetError> {
        content::find(&self.home, content, &bundle.kernel)
            .ok_or_else(|| ResetError::OtherKernel { sandbox: self.label(), path: content.path.clone() })
    }
}
