//! The phase of a machine and the reason of its end, in the status file, events and replies.

use crate::{capped, machine::HostMode};
use serde::{Deserialize, Serialize};
use std::fmt;
use syscalls::Sysno;

/// Maximum length in bytes of a message for users in a reply, an event or the status file. Longer
/// ones are cut when sent.
pub const MAX_TEXT: usize = 4096;

/// Length of the status file in bytes. The text is padded with spaces, so that one write replaces the whole file and a
/// reader never sees a mixture of two.
pub const STATUS_LEN: usize = 1024;

/// The phase of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is set up, and no guest instruction was executed yet.
    Created,
    /// The vCPUs run, and the agent does not respond yet.
    Booting,
    /// The agent listens.
    Ready,
    /// All vCPUs stand still.
    Paused,
    /// The machine has ended.
    Ended,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The agent shut the guest down gracefully.
    #[error("the guest shut down")]
    GuestShutdown,
    /// Stopped through the control socket.
    #[error("stopped on request")]
    Stopped,
    /// The process that launched the VMM has ended, and the machine was tied to it.
    #[error("the launching process ended")]
    LauncherGone,
    /// The guest kernel panicked.
    #[error("the guest kernel panicked")]
    GuestPanic,
    /// The guest reset itself without announcing a shutdown.
    #[error("the guest reset itself without shutting down")]
    GuestReset,
    /// Triple fault (KVM_EXIT_SHUTDOWN).
    #[error("triple fault in the guest")]
    TripleFault,
    /// KVM could not execute the guest any further (KVM_EXIT_INTERNAL_ERROR).
    #[error("KVM could not execute a guest instruction (suberror {suberror}, rip {rip:#x}, bytes {bytes})")]
    InternalError {
        /// KVM's suberror; 1 is an emulation failure.
        suberror: u32,
        /// Guest RIP.
        rip: u64,
        /// Instruction bytes in hex, if KVM reported them.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        bytes: String,
    },
    /// KVM_EXIT_FAIL_ENTRY.
    #[error("the processor refused to enter the guest (reason {reason:#x})")]
    EntryFailure {
        /// Hardware reason.
        reason: u64,
    },
    /// Access to an I/O port that no device owns.
    #[error("guest {} unknown I/O port {port:#x} ({size} bytes)", if *write { "wrote to" } else { "read" })]
    UnknownPort {
        /// Port.
        port: u16,
        /// Direction.
        write: bool,
        /// Access size in bytes.
        size: u8,
    },
    /// Access to an address where neither memory nor a device is.
    #[error("guest {} unmapped address {address:#x} ({size} bytes)", if *write { "wrote to" } else { "read" })]
    UnknownMmio {
        /// Guest-physical address.
        address: u64,
        /// Direction.
        write: bool,
        /// Access size in bytes.
        size: u8,
    },
    /// An exit that this VMM does not support.
    #[error("unexpected KVM exit: {name}")]
    UnexpectedExit {
        /// Name of the exit.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        name: String,
    },
    /// The host failed: a KVM call, memory, a file.
    #[error("host failure: {message}")]
    HostFailure {
        /// What was tried and why it failed.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        message: String,
    },
    /// No machine can have this configuration.
    #[error("cannot start: {message}")]
    BadConfig {
        /// What is wrong with it.
        #[serde(with = "capped::Text::<MAX_TEXT>")]
        message: String,
    },
    /// The VMM made a system call that its filter refuses: because of a bug, or because it was
    /// taken over.
    #[error("ended by the system call filter: call {number} ({}) in {thread}", system_call_name(*number))]
    ForbiddenCall {
        /// Number of the call (x86-64).
        number: u32,
        /// The kind of thread that made it.
        thread: VmmThread,
    },
    /// The guest's kernel powered the machine off, by reboot(2).
    #[error("the guest powered off")]
    GuestPowerOff,
    /// The guest's kernel halted the machine, by reboot(2).
    #[error("the guest halted")]
    GuestHalt,
    /// No vCPU can ever execute another instruction: each is halted with interrupts disabled, or was never started.
    #[error("every vCPU of the guest is halted with interrupts disabled")]
    VcpusHalted,
}

impl ExitReason {
    /// Returns true if nothing went wrong.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::GuestShutdown | Self::Stopped | Self::LauncherGone)
    }
}

/// Content of the status file, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// PID of the VMM in its own PID namespace.
    pub pid: u32,
    /// Phase of the machine.
    pub phase: Phase,
    /// What executes ring 0 of the guest.
    pub host_mode: HostMode,
    /// Why the machine ended, if it has.
    pub reason: Option<ExitReason>,
    /// Parts of the VMM's confinement that this host does not provide. Empty if all are in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<JailPart>,
    /// The guest's kernel does not hide time in which the machine did not run. So its clocks jump
    /// after a pause or a restore, and a busy process may appear to stand still for that time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clocks_jump: bool,
    /// The version of the wire that the VMM speaks. VMMs of version 1 do not say it.
    #[serde(default = "first_version", skip_serializing_if = "is_first_version")]
    pub wire: u8,
}

fn first_version() -> u8 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_first_version(version: &u8) -> bool {
    *version == 1
}

/// A part of the VMM's confinement that a host may not provide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailPart {
    /// Users and groups that do not exist on the host.
    UserNamespace,
    /// Separate mounts, network, IPC, host name and control groups.
    Namespaces,
    /// An empty root directory instead of the host's files.
    EmptyRoot,
    /// A user that no other process has.
    OwnUser,
}

impl fmt::Display for JailPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserNamespace => "a user namespace of its own",
            Self::Namespaces => "mount, network, IPC, UTS and cgroup namespaces of its own",
            Self::EmptyRoot => "an empty root directory",
            Self::OwnUser => "a user of its own",
        })
    }
}

/// A kind of thread of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmThread {
    /// The main thread: devices and control.
    EventLoop,
    /// A thread that runs a vCPU.
    Vcpu,
    /// A process that writes a snapshot or merges disk layers.
    Writer,
}

impl VmmThread {
    /// Returns the name in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::EventLoop => "event_loop",
            Self::Vcpu => "vcpu",
            Self::Writer => "writer",
        }
    }
}

impl fmt::Display for VmmThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EventLoop => "the event loop",
            Self::Vcpu => "a vCPU thread",
            Self::Writer => "a process that writes files",
        })
    }
}

/// Returns the name of an x86-64 system call for users, or "unknown" for a call that is newer than
/// the table.
#[must_use]
pub fn system_call_name(number: u32) -> &'static str {
    usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name())
}
