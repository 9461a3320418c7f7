//! Resets a sandbox to its beginning or to a snapshot. The VMM resets the machine in place if it
//! started from that very snapshot; otherwise the VMM is replaced. Directory, ID and name stay in
//! both cases.

use crate::{
    audit::Event,
    create::{
        beginning::{Beginning, Source},
        launch::{Disks, Launch, Start},
    },
    create::{error::CreateError, started},
    guest::{
        authority,
        error::ExecError,
        identity,
        in_use::InUseError,
        interruption::{self, Interruption},
    },
    home::{
        content::{self, Content},
        directory::{DirectoryError, SandboxDirectory},
        host::{self, HostIdentity},
    },
    limits::{
        admission::{self, AdmissionError},
        disk_reservation::DiskReservation,
    },
    mounts,
    network::pins::KeptPins,
    sandbox::Sandbox,
    snapshot::change::{Change, ChangeError, Running},
    snapshot::store::SnapshotFiles,
    snapshot::{
        error::SnapshotError,
        lineage::{Files, Kind, Lineage, LineageError, Origin, TEMPLATE, free_name, open_all},
        store::{ReadOnlyDisks, StoredSnapshot, find_disk},
    },
    supervision::SuperviseError,
    vmm::{
        card,
        control::ControlError,
        descriptors::{LaunchError, LaunchFiles},
        end::{self, EndError},
        wire::WireError,
    },
    volumes::{self, VolumeError},
    workspace,
};
use futures_util::future::BoxFuture;
use sandboxvm_images::bundle::{Bundle, BundleError, Part};
use sandboxvm_protocol::{
    ids::{SandboxId, SandboxName},
    machine::{MIB, MemorySize, VcpuCount},
    vmm::{ControlReply, ControlRequest, ResetDevice, ResetReport, ResetRequest},
};
use std::{fs::File, path::PathBuf, time::Duration};
use tokio::time::timeout;

/// A reset takes some milliseconds; the limit allows for a host that swaps.
const RESET_WITHIN: Duration = Duration::from_secs(60);

/// Why a sandbox was not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The sandbox started in the middle of another one's run.
    #[error("cannot reset sandbox {sandbox} to its start: it is a fork of {of}, which was already running")]
    Fork {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// The sandbox that it was forked from.
        of: SandboxId,
    },
    /// The snapshot is of another kind of machine.
    #[error(
        "cannot reset sandbox {sandbox} to snapshot {snapshot}: the snapshot is of a machine with {theirs}, and the sandbox \
         has {ours}"
    )]
    OtherMachine {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// vCPUs, memory and disk of the sandbox.
        ours: String,
        /// Name of the snapshot.
        snapshot: SandboxName,
        /// vCPUs, memory and disk of the snapshot.
        theirs: String,
    },
    /// The machine of the snapshot has another workspace, or one of the two has none.
    #[error("cannot reset sandbox {sandbox} to snapshot {snapshot}: they do not have the same workspace")]
    OtherWorkspace {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Name of the snapshot.
        snapshot: SandboxName,
    },
    /// The machine of the snapshot has other mounts.
    #[error("cannot reset sandbox {sandbox} to snapshot {snapshot}: they do not have the same mounts")]
    OtherMounts {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Name of the snapshot.
        snapshot: SandboxName,
    },
    /// A volume of the sandbox cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The sandbox is paused to disk, and can only continue where it stopped.
    #[error("cannot reset sandbox {0}: it is paused on disk and can only be resumed or removed")]
    Parked(String),
    /// A `run` attends the sandbox and removes it when its VMM ends.
    #[error(
        "cannot reset sandbox {0} to another snapshot than the one it started from: it ends with the command that it runs"
    )]
    Attended(String),
    /// The kernel that the sandbox booted was replaced.
    #[error("cannot reset sandbox {sandbox}: the guest kernel {} was replaced since it booted", .path.display())]
    OtherKernel {
        /// Name of the sandbox, or its ID if it has none.
        sandbox: String,
        /// Path that the kernel had.
        path: PathBuf,
    },
    /// The host does not have room for the sandbox.
    #[error("{0}")]
    Admission(#[from] AdmissionError),
    /// The snapshot does not exist or cannot be used.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The lineage of the sandbox cannot be read or written.
    #[error("{0}")]
    Lineage(#[from] LineageError),
    /// The VMM refused the request or failed.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// VMM, kernel, image or agent is missing or damaged.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// The VMM cannot be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// The new VMM did not start.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The new machine did not start.
    #[error("{0}; the sandbox is stopped")]
    Start(Box<CreateError>),
    /// The machine did not accept its identity.
    #[error("cannot give the sandbox its identity: {0}")]
    Identity(Box<ExecError>),
    /// The agent does not answer.
    #[error("the sandbox was reset, but its guest agent did not respond within {} s", .0.as_secs())]
    Silent(Duration),
    /// The services of the sandbox cannot be started again.
    #[error("{0}")]
    Supervision(#[from] SuperviseError),
    /// The idle rule paused the sandbox, and it cannot be resumed.
    #[error("{0}")]
    Idle(#[from] InUseError),
    /// A file operation failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl From<ChangeError> for ResetError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotRunning { sandbox, state } => ControlError::NotRunning { sandbox, state }.into(),
            ChangeError::Idle(error) => Self::Idle(error),
            ChangeError::Control(error) => Self::Control(error),
            ChangeError::Lineage(error) => Self::Lineage(error),
            ChangeError::Directory(error) => Self::Directory(error),
        }
    }
}

/// How a sandbox was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetDone {
    /// The VMM reset the machine.
    InPlace(ResetReport),
    /// Another VMM replaced the one of the sandbox.
    Anew,
}

/// Whether a sandbox that is paused to disk may be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parked {
    Allowed,
    Refused,
}

/// What a sandbox is reset to.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// The state it started from.
    Beginning,
    Snapshot(&'a SandboxName),
    /// Its own disk as it is, without memory.
    OwnDisk,
}

/// A [`Place`] with its files opened: what the new machine is restored from.
enum Found<'a> {
    Beginning,
    Snapshot(&'a SandboxName, &'a StoredSnapshot),
    OwnDisk,
}

/// The current files of the sandbox, with its VMM if it runs.
enum Composition<'s> {
    Running(Box<Running<'s>>),
    AtRest(Box<Lineage>),
}

impl Composition<'_> {
    fn lineage(&self) -> &Lineage {
        match self {
            Self::Running(running) => &running.lineage,
            Self::AtRest(lineage) => lineage,
        }
    }
}

impl Sandbox {
    /// Resets memory, disk and processes: to `snapshot`, or without one to where the sandbox
    /// started. A sandbox that does not run is started again. Open connections are closed. Calls
    /// `is_running` before the guest mounts anything: the caller must start a supervisor then, without
    /// which nothing can be mounted in a live share.
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn reset(
        &self,
        bundle: &Bundle,
        snapshot: Option<&SandboxName>,
        boot_timeout: Duration,
        is_running: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        let to = snapshot.map_or(Place::Beginning, Place::Snapshot);
        let host_is_done = Box::new(|| ());
        self.put_back(bundle, to, boot_timeout, Parked::Refused, host_is_done, Box::new(is_running)).await
    }

    /// Resumes a sandbox that is paused to disk (see [`Self::park`]) from the snapshot that was
    /// taken when it was paused. Calls `host_is_done` as soon as only the guest remains to be
    /// waited for: the caller must not hold anything that others share from then on, because a
    /// guest can take as long as it wants.
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
        let (to, host_is_done) = (Place::Snapshot(snapshot), Box::new(host_is_done));
        self.put_back(bundle, to, boot_timeout, Parked::Allowed, host_is_done, Box::new(|| ())).await
    }

    /// Boots a sandbox that is paused to disk from its own disk, as it was left: memory and
    /// processes are lost. `host_is_done` is called as in [`Self::resume_from`].
    ///
    /// # Errors
    /// Every [`ResetError`].
    pub async fn resume_from_disk(
        &self,
        bundle: &Bundle,
        boot_timeout: Duration,
        host_is_done: impl FnOnce() + Send,
    ) -> Result<ResetDone, ResetError> {
        let (to, host_is_done) = (Place::OwnDisk, Box::new(host_is_done));
        self.put_back(bundle, to, boot_timeout, Parked::Allowed, host_is_done, Box::new(|| ())).await
    }

    fn put_back<'a>(
        &'a self,
        bundle: &'a Bundle,
        to: Place<'a>,
        boot_timeout: Duration,
        parked: Parked,
        host_is_done: Box<dyn FnOnce() + Send + 'a>,
        is_running: Box<dyn FnOnce() + Send + 'a>,
    ) -> BoxFuture<'a, Result<ResetDone, ResetError>> {
        Box::pin(async move {
            let snapshot = match to {
                Place::Snapshot(name) => Some(name),
                Place::Beginning | Place::OwnDisk => None,
            };
            let named = snapshot.map(|name| StoredSnapshot::named(&self.home, name)).transpose()?;
            let change = Change::begin(self).await?;
            if parked == Parked::Refused && self.is_parked() {
                return Err(ResetError::Parked(self.label()));
            }
            let mut composition = if self.state()?.is_live() {
                Composition::Running(Box::new(change.running().await?))
            } else {
                Composition::AtRest(Box::new(change.lineage_at_rest()?))
            };
            let lineage = composition.lineage();
            let began_from = match &lineage.origin {
                Origin::Snapshot { id, .. } if !lineage.rebooted => Some(id.clone()),
                Origin::Snapshot { .. } | Origin::Boot | Origin::Fork { .. } => None,
            };
            let named = named.filter(|named| began_from.as_ref() != Some(&named.manifest.id));
            let is_live = matches!(composition, Composition::Running(_));
            if is_live {
                // The files that the sandbox writes now stay on disk until the new machine is built.
                admission::check_room(&self.home, 0)?;
            }
            self.note_end()?;
            let mut host_is_done = Some(host_is_done);
            let mut only_the_guest = || {
                if let Some(host_is_done) = host_is_done.take() {
                    host_is_done();
                }
            };
            let can_stay = named.is_none() && began_from.is_some() && !matches!(to, Place::OwnDisk);
            let done = match &mut composition {
                Composition::Running(running) if can_stay => {
                    let reset = self.reset_in_place(running).await;
                    if reset.is_err() {
                        // The machine may still run.
                        self.reattach_network().await;
                    }
                    ResetDone::InPlace(reset?)
                }
                other => {
                    let from = match (to, snapshot.zip(named.as_ref())) {
                        (Place::OwnDisk, _) => Found::OwnDisk,
                        (_, Some((name, snapshot))) => Found::Snapshot(name, snapshot),
                        (_, None) => Found::Beginning,
                    };
                    self.begin_again(bundle, other.lineage(), from, boot_timeout, &mut only_the_guest).await?;
                    if !is_live {
                        self.start_time_anew()?;
                    }
                    ResetDone::Anew
                }
            };
            self.reattach_network().await;
            // Meanwhile another command may have given the old machine its identity, which removed the
            // mark, so it is set again.
            identity::make_due(&self.directory)?;
            authority::forget(&self.directory)?;
            workspace::forget(&self.directory)?;
            workspace::mounting::make_due(&self.directory)?;
            mounts::mounting::make_due(&self.directory, &self.record)?;
            self.trail().note(Event::Reset { to: snapshot.cloned() });
            // The agent of a snapshot is not trusted: it must not keep others from changing the
            // sandbox.
            drop(composition);
            let _in_use = change.end();
            only_the_guest();
            is_running();
            let is_restored = !matches!(to, Place::OwnDisk) && (snapshot.is_some() || began_from.is_some());
            let restored_within = host::restored_agent_answers_within().min(boot_timeout);
            let within = if is_restored { restored_within } else { boot_timeout };
            match timeout(within, self.settle()).await {
                Ok(settled) => settled.map_err(|error| ResetError::Identity(Box::new(error)))?,
                Err(_) => return Err(ResetError::Silent(within)),
            }
            Ok(done)
        })
    }

    async fn reset_in_place(&self, running: &mut Running<'_>) -> Result<ResetReport, ResetError> {
        let directory = &self.directory;
        let Origin::Snapshot { state, memory, disk, .. } = &running.lineage.origin else {
            unreachable!("called for sandboxes that began from a snapshot")
        };
        let state = directory.open_shared(state)?;
        let top_name = free_name(directory, Kind::Disk)?;
        let next =
            Files { disk: disk.iter().cloned().chain([top_name.clone()]).collect(), baseline: Some(memory.clone()) };
        let mut layers = open_all(directory, disk)?;
        running.lineage.check_origin(directory).await.map_err(SnapshotError::from)?;
        if self.record.network_card {
            // What is on its way to the machine before, and its connections, are not for the restored one.
            KeptPins::of(self.network_pins(true).await).write(directory)?;
            card::detach(&mut running.control).await?;
        }
        identity::make_due(directory)?;
        // The machine has no workspace until it is mounted again, also if this process is killed now.
        workspace::mounting::make_due(directory)?;
        mounts::mounting::make_due(directory, &self.record)?;
        layers.push(directory.create_file(&top_name)?);
        running.announce(next.clone(), &top_name)?;
        interruption::announce(directory, Interruption::Reset);
        let mut sent = LaunchFiles::default();
        let request = ControlRequest::Reset(ResetRequest {
            state: sent.add(&state),
            devices: vec![ResetDevice::Block { layers: layers.iter().map(|layer| sent.add(layer)).collect() }],
        });
        match running.control.request_with(request, &sent, RESET_WITHIN).await? {
            Ok(ControlReply::Reset(report)) => {
                // If the disk has no room for the record, the announcement in the lineage says the
                // same.
                let _ = running.complete(next);
                Ok(report)
            }
            Err(refusal) => {
                interruption::withdraw(directory);
                running.conclude();
                Err(ControlError::from(refusal).into())
            }
            Ok(_) => Err(ControlError::from(WireError::Unexpected("another request's reply")).into()),
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
        // A `prune` must not remove the directory while no VMM runs in it.
        let own = SandboxDirectory::open(self.directory.path().to_owned())?;
        if !own.try_claim()? {
            return Err(ResetError::Attended(self.label()));
        }
        // All checks that can fail are done while the old machine still runs.
        let directory = &self.directory;
        let template = directory.open_shared(TEMPLATE)?;
        let (mut opened, kernel);
        let mut beginning = match from {
            Found::Snapshot(name, snapshot) => {
                self.check_shape(name, snapshot)?;
                let host = HostIdentity::read().map_err(SnapshotError::from)?;
                opened = SnapshotFiles { template, ..snapshot.files(&host).await? };
                Beginning::restore(directory, snapshot, snapshot.manifest.contents.clone(), &mut opened)?
            }
            Found::OwnDisk => {
                kernel = self.same_kernel(bundle, &lineage.contents.kernel)?;
                Beginning::boot_own_disk(directory, lineage, &kernel, &template)?
            }
            Found::Beginning => match &lineage.origin {
                Origin::Fork { of } => {
                    return Err(ResetError::Fork { sandbox: self.label(), of: of.clone() });
                }
                Origin::Boot => {
                    kernel = self.same_kernel(bundle, &lineage.contents.kernel)?;
                    Beginning::boot_empty(directory, lineage.contents.clone(), &kernel, &template)?
                }
                Origin::Snapshot { state, memory, disk, .. } => {
                    lineage.check_origin(directory).await.map_err(SnapshotError::from)?;
                    opened = SnapshotFiles {
                        state: directory.open_shared(state)?,
                        memory: open_all(directory, memory)?,
                        disk: open_all(directory, disk)?,
                        template,
                    };
                    Beginning::restore_own(directory, lineage, &mut opened)?
                }
            },
        };
        let ReadOnlyDisks { agent: (agent, _), image: (image, _) } = match from {
            Found::Snapshot(_, snapshot) => snapshot.read_only_disks(&self.home, bundle)?,
            Found::Beginning | Found::OwnDisk => ReadOnlyDisks {
                agent: find_disk(&self.home, directory, bundle, Part::Agent, &beginning.contents.agent)?,
                image: find_disk(&self.home, directory, bundle, Part::Image, &beginning.contents.image)?,
            },
        };
        bundle.open_part(Part::Vmm)?;
        // Of the snapshot if there is one, since it says which versions of the volumes its memory has.
        let mounts = match from {
            Found::Snapshot(_, snapshot) => &snapshot.manifest.mounts,
            Found::Beginning => &self.record.mounts,
            Found::OwnDisk => &self.record.mounts.clone().without_versions(),
        };
        // A machine that runs has the lock of a volume that it can write, so no other changed that volume,
        // and it can be opened only after the machine's end.
        let waits_for_the_end = mounts.writable_volume().is_some() && self.state()?.is_live();
        let volumes = if waits_for_the_end { None } else { Some(volumes::open::open_all(&self.home, mounts)?) };
        self.admit_again()?;
        let room = DiskReservation::for_a_start(directory)?;
        interruption::announce(directory, Interruption::Reset);
        // The processes of the network end with the machine, so what they know is kept.
        KeptPins::of(self.network_pins(true).await).write(directory)?;
        end::now(&self.home, directory, self.id()).await?;
        drop(room);
        let program = bundle.path(Part::Vmm);
        let volumes = match volumes {
            Some(volumes) => volumes,
            None => volumes::open::open_all(&self.home, mounts)?,
        };
        let launch = Launch::again(&self.home, directory, &self.record, program, volumes)?;
        beginning.contents.vmm = content::at(&self.home, program)?;
        let boots = matches!(beginning.source, Source::Kernel(_));
        let prepared = launch.prepare(directory, &self.record, beginning, Disks { agent: &agent, image: &image })?;
        let vmm = prepared.hand_over(&self.record, Start::Now, false)?;
        if boots {
            // The kernel that boots reads what the guest wrote to its disk, so the guest decides
            // how long the boot takes.
            only_the_guest();
        }
        started::attend(self, vmm, boot_timeout).await.map_err(|error| ResetError::Start(Box::new(error)))
    }

    /// Reserves memory of the host for a sandbox that does not run and is started again. The files
    /// of its disk exist already.
    fn admit_again(&self) -> Result<(), ResetError> {
        if !self.state()?.is_live() {
            let memory = self.record.memory_bytes;
            let admitted = admission::admit(&self.home, self.id(), memory, 0);
            admitted.inspect_err(|error| self.trail().note_refusal(memory, 0, error))?;
        }
        Ok(())
    }

    /// Rejects a snapshot of another kind of machine.
    fn check_shape(&self, name: &SandboxName, snapshot: &StoredSnapshot) -> Result<(), ResetError> {
        let (manifest, record) = (&snapshot.manifest, &self.record);
        let shape = |vcpus: VcpuCount, memory: MemorySize, disk: u64, has_card: bool| {
            let card = if has_card { "a network card" } else { "no network card" };
            format!("{vcpus} vCPUs, {} MiB of memory, {} MiB of disk and {card}", memory.mib(), disk / MIB)
        };
        let theirs = shape(manifest.vcpus, manifest.memory_bytes, manifest.disk_bytes, manifest.network_card);
        let ours = shape(record.vcpus, record.memory_bytes, record.disk_bytes, record.network_card);
        if theirs == ours {
            let has_workspace = snapshot.has_workspace_of(record, &self.directory)?;
            let other = ResetError::OtherWorkspace { sandbox: self.label(), snapshot: name.clone() };
            if !has_workspace {
                return Err(other);
            }
            let has_mounts = manifest.mounts.fits(&record.mounts) && manifest.read_only_root == record.read_only_root;
            let other = ResetError::OtherMounts { sandbox: self.label(), snapshot: name.clone() };
            return if has_mounts { Ok(()) } else { Err(other) };
        }
        Err(ResetError::OtherMachine { sandbox: self.label(), ours, snapshot: name.clone(), theirs })
    }

    /// Opens the kernel that the sandbox booted, by content: at its old path, or else the bundle's.
    fn same_kernel(&self, bundle: &Bundle, content: &Content) -> Result<File, ResetError> {
        content::find(&self.home, content, &bundle.kernel)
            .ok_or_else(|| ResetError::OtherKernel { sandbox: self.label(), path: content.path.clone() })
    }
}
