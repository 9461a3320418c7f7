//! Creates sandboxes, runs processes in them, and stops, saves, copies and removes them.
//!
//! ```no_run
#![doc = include_str!("../examples/run_python.rs")]
//! ```
//!
//! A sandbox is one directory and one VMM process. The whole state is on disk: the files, and which
//! process holds the lock (`vmm::state`). So every [`Manager`] sees the same, needs no daemon, and
//! survives a kill -9 of any process.
//!
//! ```text
//! Manager ── create ──> staging/<id> ──rename──> sandboxes/<id> ── launch ──> sandboxvm-vmm (holds `lock`)
//!    │                                                 │                        ▲ control.sock   ▲ vsock.sock
//!    └─ find, list ──> Sandbox ── exec, stop, pause, stats, remove ─────────────┴────────────────┘
//!                         ├─ snapshot ──> staging/<id> ──rename──> snapshots/<name>, ready/<key> ── create ──> ...
//!                         ├─ fork ──> sandboxes/<id>, ...      reset: the same directory, another machine in it
//!                         └─ remove ──rename──> trash/<id> ──> gone
//! ```
//! A sandbox with a time to live, an idle rule or published ports has a second process, its
//! supervisor (`supervision`).
//!
//! Only `vmm::spawn`, `supervision` and `image::bootable` may start processes, only `vmm::end` may end a VMM with
//! everything that it started, and only `guest` may talk to the agent in a guest. The library may
//! not touch a terminal, the environment or KVM. `cli`, `server` and `mcp` call it, within a tokio
//! runtime.
//!
//! Functions where one part of the library enters another return a boxed future. The compiler
//! generates the code of an `async fn` in each crate that awaits it: without the boxes, most of this
//! library would be compiled again for `server`, `mcp` and `cli`.

pub mod audit;
mod clock;
mod create;
mod discard;
mod guest;
mod home;
mod hostile_text;
mod image;
mod image_defaults;
mod lifecycle;
mod limits;
mod listing;
mod manager;
mod mounts;
mod network;
mod record;
mod sandbox;
mod shared_volumes;
mod signal_name;
mod snapshot;
mod supervision;
mod vmm;
mod volumes;
#[cfg(test)]
#[path = "../../tests/host/without_fsync.rs"]
mod without_fsync;
mod workspace;

pub use create::pool::{Pool, PoolRequest};
pub use create::{
    error::CreateError,
    spec::{SandboxSpec, StartFrom},
};
pub use create::{error::StartError, started::StartedSandbox};
pub use guest::connection::agent::AgentError;
pub use guest::connection::answer::{Answered, GuestScope, InUseElsewhere};
pub use guest::connection::courier::{Carried, Courier};
pub use guest::connection::remote::RemoteSandbox;
pub use guest::error::{ExecError, FailureClass};
pub use guest::files::{
    CopyError, CopyLimits, CopyReport, DiskChanges, FileDone, FileError, FileRefusal, FileSink, FileStream, FileWatch,
    Files, HostTarget, permissions,
};
pub use guest::in_use::InUseError;
pub use guest::interruption::Interruption;
pub use guest::ports::PortStream;
pub use guest::process::attach_spec::AttachSpec;
pub use guest::process::exec::{Exec, Output, OutputStream, ProcessControl, StdinSink};
pub use guest::process::running::ProcessSummary;
pub use guest::process::spec::{
    ProcessSpec, ProcessSpecBuilder, ProcessSpecError, VariableProblem, check_variable, environment_entry,
};
pub use guest::shares::HoldError;
pub use guest::silence::{Silence, SilentPart};
pub use guest::stop::{ForceCause, StopError, Stopped};
pub use home::content::Content;
pub use home::directory::DirectoryError;
pub use home::host::{HostError, HostIdentity};
pub use home::layout::{Home, HomeError};
pub use home::names::NameError;
pub use home::rules::AdmissionRules;
pub use hostile_text::{is_printable, one_line, printable};
pub use image::{
    BootableImage, CommitError, CommitSpec, ImageError, ImageStore, SystemdMode, UnpackProgress, main_process,
    over_environment_of_image,
};
pub use image_defaults::ImageDefaults;
pub use lifecycle::fork::{ForkError, Forked, Inheritance, Secrets, SharesOfCopies};
pub use lifecycle::remove::RemoveError;
pub use lifecycle::reset::{ResetDone, ResetError};
pub use lifecycle::sweep::{SweepFailure, Swept};
pub use lifecycle::usage::Usage;
pub use limits::admission::{AdmissionError, HostMemory, host_memory};
pub use limits::kept::{CpuShare, CpuShareError, Limits, WantedLimits};
pub use limits::lifetime::{AtEnd, IdleRule, TimeToLive, WhenIdle};
pub use listing::{SandboxSummary, Unreadable};
pub use manager::{FindError, Manager};
pub use mounts::{
    ContentLimits, MountPath, MountPathError, MountSource, MountSpec, MountedVolume, Mounts, MountsError, Share,
    ShareRootError, Tmpfs,
};
pub use network::{
    download::{DownloadReach, is_of_this_host},
    operator::{NetworkOperator, Permitted, Provided},
    policy_file::{NamedReach, OperatorTable, PolicyError, PolicyFile},
    proxy::{ProxyError, ProxySpec},
    secrets::{HeaderRuleSpec, HeaderSpec, MAX_SECRETS, SecretKind, SecretSpec, SecretText, SecretsError, ValueSource},
    spec::{NetworkSpec, NetworkSpecError},
    usage::{Advice, SuggestedRule, Suggester, Suggestion},
};
pub use record::{FileRecord, RecordError, SandboxRecord};
pub use sandbox::{Log, Sandbox};
pub use shared_volumes::{ContentProcess, SharedVolumeError, SharedVolumeId, SharedVolumeIdError, volume_content};
pub use signal_name::{SignalNameError, signal_by_name};
pub use snapshot::change::Change;
pub use snapshot::flatten::FlattenError;
pub use snapshot::lineage::{Contents, LineageError};
pub use snapshot::{
    error::SnapshotError,
    manifest::{ManifestError, MemoryFile, SnapshotManifest},
    seal::{Seal, Seals},
    store::{ListedSnapshot, UnreadableSnapshot},
    taking::SnapshotTaken,
};
pub use supervision::{
    NetworkFailure, NetworkReport, SuperviseError, SupervisionSpec, SupervisorProgram, keeper,
    publish::{HostEnd, Publish, PublishError, PublishedPort},
    status::SupervisionStatus,
};
pub use vmm::control::{ControlError, VmmRefusal};
pub use vmm::descriptors::LaunchError;
pub use vmm::end::EndError;
pub use vmm::group::{Containment, containment};
pub use vmm::last_words::LastWords;
pub use vmm::state::State;
pub use vmm::wire::WireError;
pub use volumes::{Volume, VolumeError, VolumeName, VolumeNameError, VolumeUser};
pub use workspace::{APPLY_JOURNAL, StoreError, StoredChanges, WorkspaceError, WorkspaceRecord, WorkspaceSpec};

// Values that callers hand in and get back. They are defined where the wires are, and are part of this library's API: no
// caller needs `sandboxvm-protocol`, whose messages are an affair of the manager, the VMM and the agent.
pub use sandboxvm_egress_policy::rule::{Rule, RuleError, Target};
pub use sandboxvm_images::{
    bundle::{Bundle, BundleSources},
    template::DiskSize,
};
pub use sandboxvm_protocol::agent::{
    CText, CTextError, ExitStatus, FailureKind, OnDisconnect, SignalNumber, TerminalSize,
    details::{FileDetails, FileMetadata, FoundTarget, LinkTarget, MAX_METADATA, Observation},
    files::{
        ChangeKind, FileChange, FileEntry, FileErrorKind, FileKind, FilePath, FilePathError, FileTime, FileTotals,
    },
    limits::{FileCount, ProcessCount},
    port::PortNumber,
    process::View,
};
pub use sandboxvm_protocol::egress::{
    DialFailure, EgressLimits, FlowEnd, HostName, Precedence, ProxyProtocol, Reach, TrafficCounters, Transport,
};
pub use sandboxvm_protocol::ids::{SandboxId, SandboxName};
pub use sandboxvm_protocol::machine::{
    DiskLimits, DiskOperations, DiskRate, HostMode, MIB, MachineError, MemorySize, OutputRate, VcpuCount,
};
pub use sandboxvm_protocol::vmm::{
    BootMark, ExitReason, JailPart, Phase, RefusalKind, VcpuStats, VmStats, VmStatus, VmmThread,
};
pub use sandboxvm_protocol::{agent::WIRE as AGENT_WIRE, frame::Wire, vmm::WIRE as VMM_WIRE};
