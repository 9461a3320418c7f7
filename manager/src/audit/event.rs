//! The acts that are logged.

use crate::{
    audit::mask::Mask,
    limits::lifetime::{AtEnd, WhenIdle},
    record::SandboxRecord,
};
use sandboxvm_protocol::{
    agent::{CText, ExecRequest, ExitStatus, SignalNumber, files::FileOperation, limits::LimitsHit},
    ids::{SandboxId, SandboxName},
    machine::{MemorySize, VcpuCount},
};
use serde::{Deserialize, Serialize};

/// What a new sandbox goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A kernel that boots.
    Boot,
    /// The snapshot of a machine of its kind that just booted.
    Ready,
    /// A snapshot with a name.
    Snapshot(SandboxName),
    /// A running sandbox, of which it is a copy.
    Fork(SandboxId),
}

/// What was done with files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileAct {
    /// A file's bytes went out.
    Read,
    /// A file's bytes came in.
    Write,
    /// A directory was made, or was there.
    MakeDirectory,
    /// Renamed.
    Move,
    /// Removed, with all that was in it.
    Remove,
    /// Given another mode.
    SetMode,
    /// Given another owner.
    SetOwner,
    /// Watched for changes.
    Watch,
    /// A tree went out.
    Archive,
    /// A tree came in.
    Extract,
}

/// An act on a sandbox, or what became of it. Bytes that are not UTF-8 are shown as U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It was made.
    Created {
        /// Its name.
        name: Option<SandboxName>,
        /// Its vCPUs.
        vcpus: VcpuCount,
        /// Its memory.
        memory_bytes: MemorySize,
        /// Size of its disk in bytes.
        disk_bytes: u64,
        /// What it goes on from.
        from: Origin,
        /// Names of the variables that all its processes get.
        env: Vec<String>,
    },
    /// A process is about to be started. Logged before it is, and nothing is started when that fails.
    Exec {
        /// Program and arguments, in which the values of variables are masked.
        argv: Vec<String>,
        /// Names of the variables it is given.
        env: Vec<String>,
        /// Its working directory, if one was asked for.
        cwd: Option<String>,
        /// Its user, if one was asked for.
        user: Option<String>,
        /// It has a terminal.
        terminal: bool,
    },
    /// It was started.
    Started {
        /// `seq` of the line that says what it is.
        exec: u64,
        /// Its PID in the guest.
        pid: u32,
    },
    /// It was not.
    NotStarted {
        /// `seq` of the line that says what it is.
        exec: u64,
        /// Why.
        reason: String,
    },
    /// A process ended, as far as whoever attended it saw.
    Ended {
        /// Its PID.
        pid: u32,
        /// As a shell has it.
        exit_code: u8,
        /// The signal that killed it.
        signal: Option<u8>,
        /// Its time ran out.
        timed_out: bool,
    },
    /// Somebody took part in a process that ran.
    Attached {
        /// Its PID.
        pid: u32,
        /// Also in its input.
        stdin: bool,
    },
    /// A process was signalled.
    Signalled {
        /// Its PID.
        pid: u32,
        /// The signal.
        signal: u8,
    },
    /// Its files were worked on: read from, written to, or changed. Of what takes a while, logged when it has begun.
    Files {
        /// What was done.
        act: FileAct,
        /// With which.
        path: String,
        /// Where it was moved.
        to: Option<String>,
        /// As which user, if one was asked for.
        user: Option<String>,
    },
    /// A snapshot was made of it.
    SnapshotCreated {
        /// Its name.
        snapshot: SandboxName,
    },
    /// Copies were made of it.
    Forked {
        /// Their IDs.
        copies: Vec<SandboxId>,
    },
    /// It was rolled back.
    Reset {
        /// To this snapshot; else to where it began.
        to: Option<SandboxName>,
    },
    /// It was paused.
    Paused,
    /// It was resumed.
    Resumed,
    /// It was stopped in order.
    Stopped,
    /// A machine of its ended otherwise; said by the first who noticed.
    MachineEnded {
        /// Why.
        reason: String,
    },
    /// It was removed.
    Removed,
    /// One of its ports can be reached on the host.
    PortPublished {
        /// Port of the guest.
        guest_port: u16,
        /// Where on the host.
        host: String,
    },
    /// It cannot any more.
    PortTakenBack {
        /// Port of the guest.
        guest_port: u16,
        /// Where on the host it was.
        host: String,
    },
    /// It was paused because nobody used it.
    IdlePaused,
    /// It was to be made, or to run again, and was not: the host had no room for it.
    NotAdmitted {
        /// The memory it asked for.
        memory_bytes: MemorySize,
        /// The disk it asked for, in bytes.
        disk_bytes: u64,
        /// Which limit, with numbers.
        reason: String,
    },
    /// Its time to live was up, and it is about to be ended.
    TimeUp {
        /// How.
        then: AtEnd,
    },
    /// Nobody used it for as long as its idle rule says, and it is about to be ended.
    IdleEnded {
        /// How.
        then: WhenIdle,
    },
    /// Its programs met limits since this was last said. The guest's word, which its root can withhold or make up; said by
    /// whoever attended the next process to end other than with 0.
    LimitsHit {
        /// How often a program could start no process, since there were as many as there may be.
        processes_refused: u64,
        /// How many processes its kernel killed because memory ran out.
        killed_for_memory: u64,
        /// Its disk has no room left.
        disk_is_full: bool,
    },
    /// Copies were to be made of it, and none was.
    NotForked {
        /// How many.
        copies: u32,
        /// Why.
        reason: String,
    },
    /// It was to be ended in order, and was ended from outside.
    StoppedByForce {
        /// Why.
        because: String,
    },
    /// Whoever wrote the line before was ended while writing one; that one was taken away.
    Torn {
        /// Bytes of it.
        bytes: u64,
    },
}

impl Event {
    /// Work on files; nothing for a mere look.
    pub(crate) fn files(operation: &FileOperation, user: Option<&CText>) -> Option<Self> {
        let (act, path, to) = match operation {
            FileOperation::Stat { .. }
            | FileOperation::List { .. }
            | FileOperation::Describe { .. }
            | FileOperation::ListDetails { .. } => return None,
            FileOperation::Read { path } => (FileAct::Read, path, None),
            FileOperation::Write { path, .. } | FileOperation::WriteWithMetadata { path, .. } => {
                (FileAct::Write, path, None)
            }
            FileOperation::MakeDirectory { path, .. } => (FileAct::MakeDirectory, path, None),
            FileOperation::Move { from, to } => (FileAct::Move, from, Some(to)),
            FileOperation::Remove { path, .. } => (FileAct::Remove, path, None),
            FileOperation::SetMode { path, .. } => (FileAct::SetMode, path, None),
            FileOperation::SetOwner { path, .. } => (FileAct::SetOwner, path, None),
            FileOperation::Watch { path, .. } | FileOperation::Observe { path, .. } => (FileAct::Watch, path, None),
            FileOperation::Archive { path, .. } => (FileAct::Archive, path, None),
            FileOperation::Extract { path, .. } => (FileAct::Extract, path, None),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(Self::Files {
            act,
            path: text(path.as_bytes()),
            to: to.map(|to| text(to.as_bytes())),
            user: user.map(|user| text(user.as_bytes())),
        })
    }

    /// A new sandbox.
    pub(crate) fn created(record: &SandboxRecord, from: Origin) -> Self {
        Self::Created {
            name: record.name.clone(),
            vcpus: record.vcpus,
            memory_bytes: record.memory_bytes,
            disk_bytes: record.disk_bytes,
            from,
            env: names(record.env.iter().map(String::as_bytes)),
        }
    }

    /// A process that is about to be started.
    pub(crate) fn exec(request: &ExecRequest) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mask = Mask::of(request.env.iter().map(|entry| entry.as_bytes()));
        Self::Exec {
            argv: request.argv.iter().map(|word| mask.apply(&text(word.as_bytes()))).collect(),
            env: names(request.env.iter().map(|entry| entry.as_bytes())),
            cwd: request.cwd.as_ref().map(|path| text(path.as_bytes())),
            user: request.user.as_ref().map(|user| text(user.as_bytes())),
            terminal: request.terminal.is_some(),
        }
    }

    /// What a guest's agent says.
    pub(crate) fn limits_hit(hit: LimitsHit) -> Self {
        let LimitsHit { processes_refused, killed_for_memory, disk_is_full } = hit;
        Self::LimitsHit { processes_refused, killed_for_memory, disk_is_full }
    }

    /// The end of a process.
    pub(crate) fn ended(pid: u32, status: ExitStatus) -> Self {
        let signal = if let ExitStatus::Signal(signal) = status { Some(SignalNumber::get(signal)) } else { None };
        let timed_out = status == ExitStatus::TimedOut;
        Self::Ended { pid, exit_code: status.shell_code(), signal, timed_out }
    }
}

/// The names of variables, of `KEY=VALUE` each.
fn names<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    entries
        .map(|entry| entry.split(|byte| *byte == b'=').next().unwrap_or_default())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}
