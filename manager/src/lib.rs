//! The life of a sandbox: create, run, exec, stop, remove.
//!
//! One sandbox is one directory and one VMM process. The files are the truth: state is what is on disk and who holds the
//! lock (`state`), so every [`Manager`] sees the same, needs no daemon, and survives a kill -9 of anything.
//!
//! ```text
//! Manager ── create ──> staging/<id> ──rename──> sandboxes/<id> ── launch ──> sandboxvm-vmm (holds `lock`)
//!    │                                                 │                        ▲ control.sock   ▲ vsock.sock
//!    └─ find, list ──> Sandbox ── exec, stop, pause, stats, remove ─────────────┴────────────────┘
//!                         ├─ snapshot ──> staging/<id> ──rename──> snapshots/<name>, ready/<key> ── create ──> ...
//!                         ├─ fork ──> sandboxes/<id>, ...      reset: the same directory, another machine in it
//!                         └─ remove ──rename──> trash/<id> ──> gone
//! ```
//! A sandbox with a time to live, an idle rule or published ports has a second process, its supervisor (`supervision`).
//!
//! Who may do what: only `launch` and `supervision` start processes, only `end` ends a VMM with all that it started (`group`, `family`, `lock`),
//! only `agent`, `exec`, `processes` and `files` read what a guest wrote. The library never touches a terminal, the
//! environment or KVM. Called by `cli` and `server`, within a tokio runtime.

mod admission;
mod agent;
mod armed;
pub mod audit;
mod begin;
mod changing;
mod clock;
mod content;
mod control;
mod cpu_share;
mod create;
mod directory;
mod end;
mod ending;
mod exec;
mod family;
mod files;
mod flatten;
mod fork;
mod group;
mod home;
mod host;
mod hostile_text;
mod identity;
mod in_use;
mod last_words;
mod launch;
mod ledger;
mod limits;
mod lineage;
mod links;
mod lock;
mod manager;
mod named;
mod names;
mod parked;
mod parts;
mod pidfd;
mod pool;
mod ports;
mod private;
mod processes;
mod ready;
mod record;
mod remove;
mod reset;
mod room;
mod sandbox;
mod silence;
mod snapshot;
mod spawn;
mod staged;
mod started;
mod state;
mod stop;
mod storage;
mod supervision;
mod sweep;
mod usage;
mod warm;
mod wire;

pub use admission::{AdmissionError, AdmissionRules, HostMemory, host_memory};
pub use agent::{AgentError, exit_code};
pub use changing::Change;
pub use content::Content;
pub use control::ControlError;
pub use create::{CreateError, SandboxSpec, StartFrom};
pub use directory::DirectoryError;
pub use end::EndError;
pub use ending::Interruption;
pub use exec::{Exec, Output, OutputStream, ProcessControl, StdinSink};
pub use files::{
    CopyError, CopyLimits, CopyReport, FileDone, FileError, FileRefusal, FileSink, FileStream, FileWatch, Files,
    HostTarget, permissions,
};
pub use flatten::FlattenError;
pub use fork::{ForkError, Forked};
pub use group::{Containment, containment};
pub use home::{Home, HomeError};
pub use host::{HostError, HostIdentity};
pub use hostile_text::{is_printable, one_line, printable};
pub use in_use::InUseError;
pub use last_words::LastWords;
pub use launch::LaunchError;
pub use limits::{CpuShare, CpuShareError, Limits, WantedLimits};
pub use lineage::{Contents, LineageError};
pub use manager::{FindError, Manager, SandboxSummary, Unreadable};
pub use names::NameError;
pub use pool::{Pool, PoolRequest};
pub use ports::PortStream;
pub use processes::ProcessSummary;
pub use record::{FileRecord, RecordError, SandboxRecord};
pub use remove::RemoveError;
pub use reset::{ResetDone, ResetError};
pub use sandbox::{ExecError, Log, Sandbox};
pub use silence::{Silence, SilentPart};
pub use snapshot::{
    error::SnapshotError,
    manifest::{ManifestError, MemoryFile, SnapshotManifest},
    seal::{Seal, Seals},
    store::{ListedSnapshot, UnreadableSnapshot},
    taking::SnapshotTaken,
};
pub use started::{StartError, StartedSandbox};
pub use state::State;
pub use stop::{ForceCause, StopError, Stopped};
pub use supervision::{
    SuperviseError, SupervisionSpec, SupervisorProgram, keeper,
    publish::{HostEnd, Publish, PublishError, PublishedPort},
    rules::{AtEnd, IdleRule, TimeToLive, WhenIdle},
    status::SupervisionStatus,
};
pub use sweep::{SweepFailure, Swept};
pub use usage::Usage;
pub use wire::WireError;
