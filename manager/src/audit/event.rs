//! The events that are logged. An event may never contain the value of an environment variable.

use crate::{
    audit::mask::Mask,
    limits::lifetime::{AtEnd, WhenIdle},
    network::spec::NetworkSpec,
    record::SandboxRecord,
};
use sandboxvm_egress_policy::rule::Rule;
use sandboxvm_protocol::{
    agent::{CText, ExecRequest, ExitStatus, SignalNumber, files::FileOperation, limits::LimitsHit},
    egress::{FlowEnd, Reach, Transport},
    ids::{SandboxId, SandboxName},
    machine::{MemorySize, VcpuCount},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a new sandbox starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A boot of the kernel.
    Boot,
    /// The ready snapshot of its kind of machine.
    Ready,
    /// A named snapshot.
    Snapshot(SandboxName),
    /// A running sandbox, which was forked.
    Fork(SandboxId),
}

/// An operation on files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileAct {
    /// The content of a file was read.
    Read,
    /// The content of a file was written.
    Write,
    /// A directory was created, or existed.
    MakeDirectory,
    /// A file was renamed.
    Move,
    /// A file or directory was removed, with its content.
    Remove,
    /// The mode was set.
    SetMode,
    /// The owner was set.
    SetOwner,
    /// A directory was watched for changes.
    Watch,
    /// A tree was read.
    Archive,
    /// A tree was written.
    Extract,
    /// The changes of the disk were read.
    PackChanges,
    /// A workspace was mounted, or was mounted already.
    MountWorkspace,
    /// The changes of the workspace were read.
    PackWorkspace,
    /// Volumes and file systems in memory were mounted, or were mounted already.
    Mount,
}

/// Whether a use of the network was allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetworkDecision {
    /// Whether it was.
    pub allowed: bool,
    /// The rule that decided, if one did.
    pub rule: Option<String>,
    /// Why it was refused.
    pub reason: Option<String>,
}

/// An act on a sandbox, or its result. Bytes that are not UTF-8 are shown as U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The sandbox was created.
    Created {
        /// Name of the sandbox.
        name: Option<SandboxName>,
        /// Number of vCPUs.
        vcpus: VcpuCount,
        /// Size of the guest memory.
        memory_bytes: MemorySize,
        /// Size of the disk in bytes.
        disk_bytes: u64,
        /// What it starts from.
        from: Origin,
        /// Names of the variables that all its processes get.
        env: Vec<String>,
    },
    /// A process is about to be started. If this line cannot be written, the process is not
    /// started.
    Exec {
        /// Program and arguments, in which the values of variables are masked.
        argv: Vec<String>,
        /// Names of the variables of the process.
        env: Vec<String>,
        /// The working directory, if the request sets one.
        cwd: Option<String>,
        /// The user, if the request sets one.
        user: Option<String>,
        /// True if the process has a terminal.
        terminal: bool,
    },
    /// A process was started.
    Started {
        /// `seq` of the line that announced the process.
        exec: u64,
        /// PID in the guest.
        pid: u32,
    },
    /// A process could not be started.
    NotStarted {
        /// `seq` of the line that announced the process.
        exec: u64,
        /// The error.
        reason: String,
    },
    /// A process ended, as far as the client that attended it observed.
    Ended {
        /// PID in the guest.
        pid: u32,
        /// Exit code as in a shell.
        exit_code: u8,
        /// The signal that killed it.
        signal: Option<u8>,
        /// True if its timeout was reached.
        timed_out: bool,
    },
    /// A client attached to a running process.
    Attached {
        /// PID in the guest.
        pid: u32,
        /// True if the client also writes to its input.
        stdin: bool,
    },
    /// A process was signalled.
    Signalled {
        /// PID in the guest.
        pid: u32,
        /// The signal.
        signal: u8,
    },
    /// Files of the sandbox were read, written or changed. A long operation is logged when it has
    /// started.
    Files {
        /// The operation.
        act: FileAct,
        /// Path of the file.
        path: String,
        /// Path that the file was moved to.
        to: Option<String>,
        /// The user, if the request sets one.
        user: Option<String>,
    },
    /// A snapshot of the sandbox was taken.
    SnapshotCreated {
        /// Name of the snapshot.
        snapshot: SandboxName,
    },
    /// The sandbox was forked.
    Forked {
        /// IDs of the copies.
        copies: Vec<SandboxId>,
    },
    /// The sandbox was reset.
    Reset {
        /// The snapshot that it was reset to, or `None` for its start.
        to: Option<SandboxName>,
    },
    /// The sandbox was paused.
    Paused,
    /// The sandbox was resumed.
    Resumed,
    /// The sandbox was stopped gracefully.
    Stopped,
    /// A machine of the sandbox ended in another way. Logged by the first process that noticed.
    MachineEnded {
        /// The reason.
        reason: String,
    },
    /// The sandbox was removed.
    Removed,
    /// A port of the sandbox was published on the host.
    PortPublished {
        /// Port of the guest.
        guest_port: u16,
        /// The end on the host.
        host: String,
    },
    /// A port was unpublished.
    PortTakenBack {
        /// Port of the guest.
        guest_port: u16,
        /// The end on the host that it had.
        host: String,
    },
    /// The idle rule paused the sandbox.
    IdlePaused,
    /// The sandbox was to be created or started again, and was rejected, because the host had no
    /// room for it.
    NotAdmitted {
        /// The requested memory.
        memory_bytes: MemorySize,
        /// The requested disk space in bytes.
        disk_bytes: u64,
        /// The limit, with numbers.
        reason: String,
    },
    /// The sandbox has expired and is about to be ended.
    TimeUp {
        /// How it is ended.
        then: AtEnd,
    },
    /// The sandbox was not used for the time of its idle rule, and is about to be ended.
    IdleEnded {
        /// How it is ended.
        then: WhenIdle,
    },
    /// Programs reached limits since the last such line. This is reported by the guest, whose root
    /// can withhold or forge it. Logged by the client that attended the next process to end with a
    /// code other than 0.
    LimitsHit {
        /// How often a program could not start a process, because the maximum number was reached.
        processes_refused: u64,
        /// How many processes the guest's kernel killed because memory ran out.
        killed_for_memory: u64,
        /// True if the disk is full.
        disk_is_full: bool,
    },
    /// The sandbox was to be forked, and no copy was made.
    NotForked {
        /// Number of requested copies.
        copies: u32,
        /// The error.
        reason: String,
    },
    /// The sandbox was to be stopped gracefully, and was ended from outside.
    StoppedByForce {
        /// The reason.
        because: String,
    },
    /// The network of the sandbox was set, at its start or while it ran.
    NetworkSet {
        /// What it reaches without rules.
        reach: Reach,
        /// What is allowed.
        allow: Vec<String>,
        /// What is denied.
        deny: Vec<String>,
        /// Names of secrets with their hosts, and hosts of header rules.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        secrets: Vec<String>,
        /// The upstream proxy that it was given, without user and password.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proxy: Option<String>,
    },
    /// A connection of the sandbox ended, or was refused. Names are the guest's or a name server's.
    NetworkFlow {
        /// Transport.
        transport: Transport,
        /// The name that decided, or that the connection showed.
        name: Option<String>,
        /// Address.
        address: IpAddr,
        /// Port; 0 for a protocol without ports.
        port: u16,
        /// The decision.
        #[serde(flatten)]
        decision: NetworkDecision,
        /// True if the upstream proxy carried it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        proxied: bool,
        /// Bytes that the guest sent.
        bytes_out: u64,
        /// Bytes that it received.
        bytes_in: u64,
        /// Duration in milliseconds.
        millis: u64,
        /// How it ended.
        end: FlowEnd,
        /// Number of connections that the line is about.
        count: u64,
    },
    /// A question for a name was refused, or had no answer.
    NetworkName {
        /// The name.
        name: String,
        /// Type of the question, as a number of DNS.
        question: u16,
        /// The decision.
        #[serde(flatten)]
        decision: NetworkDecision,
        /// Number of questions that the line is about.
        count: u64,
    },
    /// A placeholder of a secret was found where it may not go. The request was not forwarded.
    SecretBlocked {
        /// Name of the secret.
        secret: String,
        /// Host of the request.
        host: String,
        /// Why.
        reason: String,
    },
    /// The use of the network was not logged, because there was too much of it.
    NetworkOmitted {
        /// Number of connections and questions.
        records: u64,
    },
    /// The use of the network is not logged from here on: the guest has used its part of the log.
    NetworkUnlogged,
    /// The processes of the network ended by themselves and were replaced. Meanwhile nothing passed.
    NetworkRestarted {
        /// Why they ended.
        reason: String,
    },
    /// The writer of the line before was killed while it wrote another line, and that incomplete
    /// line was removed.
    Torn {
        /// Length of the removed part in bytes.
        bytes: u64,
    },
}

impl Event {
    /// Returns the event of an operation on files, or `None` if it only looks at them.
    pub(crate) fn files(operation: &FileOperation, user: Option<&CText>) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let user = user.map(|user| text(user.as_bytes()));
        let of_the_root = |act| Self::Files { act, path: "/".to_owned(), to: None, user: user.clone() };
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
            FileOperation::Mount(_) => return Some(of_the_root(FileAct::Mount)),
            FileOperation::MountShare(mount) => (FileAct::Mount, &mount.at, None),
            FileOperation::PackChanges => return Some(of_the_root(FileAct::PackChanges)),
            FileOperation::ExtractBelowMounts => return Some(of_the_root(FileAct::Extract)),
            FileOperation::MountWorkspace(mount) => (FileAct::MountWorkspace, &mount.at, None),
            FileOperation::PackWorkspace { lowest } => {
                return Some(Self::Files {
                    act: FileAct::PackWorkspace,
                    path: format!("slot {lowest}"),
                    to: None,
                    user,
                });
            }
        };
        Some(Self::Files { act, path: text(path.as_bytes()), to: to.map(|to| text(to.as_bytes())), user })
    }

    /// Returns the event of a new sandbox.
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

    /// Returns the event of a network that is about to be in force.
    pub(crate) fn network_set(network: &NetworkSpec) -> Self {
        let texts = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
        let secrets = network.secrets.iter().map(|secret| format!("{}@{}", secret.name, secret.hosts.join(",")));
        let rules = network.header_rules.iter().map(|rule| format!("headers@{}", rule.host));
        Self::NetworkSet {
            reach: network.reach,
            allow: texts(&network.allow),
            deny: texts(&network.deny),
            secrets: secrets.chain(rules).collect(),
            proxy: network.proxy.as_ref().map(ToString::to_string),
        }
    }

    /// Returns the event of a process that is about to be started.
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

    /// Returns the event of the limits that a guest's agent reports.
    pub(crate) fn limits_hit(hit: LimitsHit) -> Self {
        let LimitsHit { processes_refused, killed_for_memory, disk_is_full } = hit;
        Self::LimitsHit { processes_refused, killed_for_memory, disk_is_full }
    }

    /// Returns the event of the end of a process.
    pub(crate) fn ended(pid: u32, status: ExitStatus) -> Self {
        let signal = if let ExitStatus::Signal(signal) = status { Some(SignalNumber::get(signal)) } else { None };
        let timed_out = status == ExitStatus::TimedOut;
        Self::Ended { pid, exit_code: status.shell_code(), signal, timed_out }
    }
}

/// Returns the names of variables in `KEY=VALUE` entries.
fn names<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    entries
        .map(|entry| entry.split(|byte| *byte == b'=').next().unwrap_or_default())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}
