//! The probes: what a rogue tries, and how a verdict follows from what it found and from the state
//! of the host afterwards. The function of the same name in rogue.py is the rogue's side of a
//! probe. The output of a rogue is hostile: it is read as numbers and short texts, and affects only
//! its own cell.

use crate::{
    execution::short,
    scene::{DISK_MIB, FORKS, MEMORY_MIB},
};
use sandboxvm_manager::printable;
use serde::Serialize;
use serde_json::Value;

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The attack affected neither the host nor the next user.
    Contained,
    /// A part of the attack worked.
    Partly,
    /// The attack worked.
    Exposed,
    /// The probe was not run, for the stated reason.
    NotRun,
}

/// The verdict on a probe: a cell of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The result.
    pub verdict: Verdict,
    /// A number for the table.
    pub figure: Option<String>,
    /// What was seen.
    pub seen: String,
}

/// What the judge knows in addition to the rogue's findings.
#[derive(Debug)]
pub struct Situation {
    /// Release and version of the host's kernel.
    pub kernel: String,
    /// Whether the sandbox is known to have a separate kernel.
    pub own_kernel: bool,
    /// The host's UTS namespace, `uts:[...]`.
    pub uts: String,
    /// A text that only a program that reached the host's bait can know.
    pub secret: String,
    /// Size of the host's file system that has the sandboxes' files.
    pub file_system: u64,
    /// What the rogue reports about its sandbox, to compare with the fields above.
    pub identity: Value,
    /// How the sandbox ended, if it ended before the rogue.
    pub ended: Option<String>,
    /// Whether the bait process still runs.
    pub bait_lives: bool,
    /// Whether the bait file still exists.
    pub precious: bool,
    /// Highest number of processes in the guard's control group.
    pub peak: Option<u64>,
    /// The monitor's filter, if the contender has a monitor: see
    /// [`crate::contenders::MonitorSurface`].
    pub monitor: Option<(Option<u64>, String)>,
}

impl Situation {
    /// Returns whether the rogue runs on the host's kernel, both from what is known beforehand and
    /// from what was seen. If it is unknown, the worse case is assumed. (The boot ID cannot be
    /// used: systemd-nspawn shows a different one.)
    fn shared_kernel(&self) -> bool {
        !self.own_kernel || self.identity["kernel"].as_str().is_none_or(|kernel| kernel == self.kernel)
    }
}

/// A probe.
#[derive(Debug)]
pub struct Probe {
    /// Name in options, JSON and rogue.py.
    pub id: &'static str,
    /// Title of the row.
    pub title: &'static str,
    /// What the rogue does.
    pub what: &'static str,
    judge: fn(&Value, &Situation) -> Judged,
}

impl Probe {
    /// Returns the verdict on what a rogue found, or none if it reported nothing.
    pub fn judge(&self, facts: Option<&Value>, situation: &Situation) -> Judged {
        match facts {
            None => not_run("the sandbox ended before this probe"),
            Some(facts) if facts["failed"].is_string() => {
                not_run(&format!("the probe failed: {}", text(facts, "failed")))
            }
            Some(facts) => (self.judge)(facts, situation),
        }
    }
}

fn judged(verdict: Verdict, seen: impl Into<String>) -> Judged {
    Judged { verdict, figure: None, seen: seen.into() }
}

fn when(exposed: bool, seen: impl Into<String>) -> Judged {
    judged(if exposed { Verdict::Exposed } else { Verdict::Contained }, seen)
}

/// Returns a verdict that the probe was not run, for a reason.
pub fn not_run(reason: &str) -> Judged {
    judged(Verdict::NotRun, short(&printable(reason), 300))
}

fn text(facts: &Value, field: &str) -> String {
    let value = &facts[field];
    let plain =
        value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned);
    short(&printable(&plain), 160)
}

fn number(facts: &Value, field: &str) -> u64 {
    facts[field].as_u64().unwrap_or(0)
}

/// All probes, in the order of the table.
pub const ALL: &[Probe] = &[
    Probe {
        id: "processes",
        title: "See host processes",
        what: "lists /proc and looks for a process of the host by its name",
        judge: |facts, _| {
            let (bait, seen) = (number(facts, "bait"), number(facts, "seen"));
            if bait > 0 {
                return judged(Verdict::Exposed, format!("{seen} processes, the host's bait among them (PID {bait})"));
            }
            judged(Verdict::Contained, format!("{seen} processes, the host's bait not among them"))
        },
    },
    Probe {
        id: "kill",
        title: "Kill a host process",
        what: "sends SIGKILL to that process, and to no other",
        judge: |facts, situation| {
            let tried = match number(facts, "found") {
                0 => "it was not to be found".to_owned(),
                pid => format!("kill({pid}): {}", worked(&text(facts, "error"))),
            };
            when(
                !situation.bait_lives,
                format!("{tried}; the process {}", if situation.bait_lives { "lives" } else { "is dead" }),
            )
        },
    },
    Probe {
        id: "escape",
        title: "Leave the root by a second chroot",
        what: "as root: chroot below the working directory, 64 times chdir(\"..\"), chroot(\".\"); then looks for a directory of the host",
        judge: |facts, situation| {
            let outside = number(facts, "outside") == 1 && situation.shared_kernel();
            let place = if outside { "the host's directory was there" } else { "nothing of the host was there" };
            when(outside, format!("{}; {place}", worked(&text(facts, "error"))))
        },
    },
    Probe {
        id: "file",
        title: "Read a host file",
        what: "opens a file of the host by its path, by /proc/1/root, and after leaving the chroot",
        judge: |facts, situation| {
            let read = facts["token"].as_str() == Some(situation.secret.as_str());
            when(
                read,
                if read {
                    format!("read by {}", text(facts, "way"))
                } else {
                    format!("not read: {}", text(facts, "tried"))
                },
            )
        },
    },
    Probe {
        id: "network",
        title: "Reach the host's network",
        what: "connects to a TCP listener on the host's 127.0.0.1, and lists the network interfaces",
        judge: |facts, situation| {
            let reached = facts["token"].as_str() == Some(situation.secret.as_str());
            let how =
                if reached { "the listener answered".to_owned() } else { format!("connect: {}", text(facts, "error")) };
            when(reached, format!("{how}; interfaces: {}", text(facts, "interfaces")))
        },
    },
    Probe {
        id: "outside",
        title: "Reach other networks by default",
        what: "connects to a TCP listener on each other address of the host, and looks for a default route, which leads to \
               the host's networks and the internet",
        judge: |facts, situation| {
            if facts["addresses"].as_u64() == Some(0) {
                return not_run("the host has no other address than its loopback");
            }
            let reached = facts["token"].as_str() == Some(situation.secret.as_str());
            match (reached, number(facts, "routes")) {
                (true, routes) => {
                    when(true, format!("the listener on {} answered; {routes} default routes", text(facts, "address")))
                }
                (false, 0) => when(false, format!("no default route; connect: {}", text(facts, "error"))),
                (false, routes) => judged(
                    Verdict::Partly,
                    format!("{routes} default routes, and no listener answered: {}", text(facts, "error")),
                ),
            }
        },
    },
    Probe {
        id: "abstract",
        title: "Reach the host's abstract Unix sockets",
        what: "connects to an abstract Unix socket of the host",
        judge: |facts, situation| {
            let reached = facts["token"].as_str() == Some(situation.secret.as_str());
            when(reached, if reached { "it answered".to_owned() } else { format!("connect: {}", text(facts, "error")) })
        },
    },
    Probe {
        id: "ipc",
        title: "Reach the host's IPC and shared memory",
        what: "looks up a System V segment of the host by its key, and a file in the host's /dev/shm",
        judge: |facts, situation| {
            let segment = facts["segment"].as_i64().is_some_and(|id| id >= 0) && situation.shared_kernel();
            let file = text(facts, "file_error").is_empty() && situation.shared_kernel();
            let seen = format!(
                "shmget: {}; /dev/shm: {}",
                worked(&text(facts, "segment_error")),
                worked(&text(facts, "file_error"))
            );
            when(segment || file, seen)
        },
    },
    Probe {
        id: "fork",
        title: "Fork bomb",
        what: "forks until it is refused, at most 2000 processes or 20 seconds; a guard outside of the sandbox would stop it at 3000",
        judge: |facts, situation| {
            let made = number(facts, "made");
            let host = situation.peak.map_or(String::new(), |peak| format!("; on the host, {peak} at the most"));
            let end = bomb_end(facts, situation);
            let mut result = if !situation.shared_kernel() {
                judged(Verdict::Contained, format!("{made} processes of its own kernel, {end}{host}"))
            } else {
                when(made >= FORKS, format!("{made} processes of the host's, {end}{host}"))
            };
            result.figure = Some(made.to_string());
            result
        },
    },
    Probe {
        id: "memory",
        title: "Memory bomb",
        what: "takes memory, 16 MiB at a time, at most 1024 MiB or 40 seconds; a guard outside of the sandbox would stop it at 1536 MiB",
        judge: |facts, situation| {
            let mib = number(facts, "mib");
            let end = bomb_end(facts, situation);
            let mut result = if !situation.shared_kernel() {
                judged(Verdict::Contained, format!("{mib} MiB of its machine's own, {end}"))
            } else {
                when(mib >= MEMORY_MIB, format!("{mib} MiB of the host's, {end}"))
            };
            result.figure = Some(format!("{mib} MiB"));
            result
        },
    },
    Probe {
        id: "disk",
        title: "Fill the disk",
        what: "allocates a file, at most 512 MiB, looks how large the file system is, and removes the file",
        judge: |facts, situation| {
            let (mib, total) = (number(facts, "mib"), number(facts, "total"));
            let same = total.abs_diff(situation.file_system) <= situation.file_system / 100;
            let seen = format!(
                "{mib} MiB allocated on a file system of {} MiB, {}",
                total >> 20,
                if same { "the host's" } else { "its own" }
            );
            let end = match text(facts, "error") {
                error if error.is_empty() => String::new(),
                error => format!("; then {error}"),
            };
            let mut result = when(same && mib >= DISK_MIB, seen + &end);
            result.figure = Some(format!("of {} MiB", total >> 20));
            result
        },
    },
    Probe {
        id: "destroy",
        title: "rm -rf / on what the host cares about",
        what: "tries to leave its root and to remove one file of the host, then runs rm -rf --one-file-system --no-preserve-root / in \
               its copy of the base image, 60 seconds at most",
        judge: |facts, situation| {
            if number(facts, "removed") == 0 {
                return not_run(&format!("refused: {}", text(facts, "refused")));
            }
            let host = if situation.precious { "the host's file is unchanged" } else { "the host's file is gone" };
            let own =
                if number(facts, "left") == 1 { "its own tree was damaged in part" } else { "its own tree is gone" };
            when(!situation.precious, format!("{host}; {own}"))
        },
    },
    Probe {
        id: "module",
        title: "Load a kernel module",
        what: "calls init_module with an invalid image: the loader would return ENOEXEC",
        judge: |facts, situation| {
            let error = text(facts, "error");
            if !situation.shared_kernel() {
                return judged(Verdict::Contained, format!("its own kernel said {error}"));
            }
            match error.as_str() {
                "EPERM" => judged(Verdict::Contained, "EPERM"),
                "ENOSYS" => not_run("the host's kernel has no loadable modules (ENOSYS)"),
                other => judged(Verdict::Exposed, format!("the host's loader said {other}")),
            }
        },
    },
    Probe {
        id: "devmem",
        title: "Open /dev/mem",
        what: "opens /dev/mem to read, after mknod if it does not exist; reads nothing",
        judge: |facts, situation| {
            let (mknod, error) = (text(facts, "mknod"), text(facts, "error"));
            let seen = format!("mknod: {}; open: {}", worked(&mknod), worked(&error));
            if !situation.shared_kernel() {
                return judged(Verdict::Contained, format!("{seen}, by its own kernel"));
            }
            match error.as_str() {
                "" => judged(Verdict::Exposed, seen),
                "ENXIO" => not_run(&format!("{seen}: the host's kernel was asked and has no such device")),
                _ => judged(Verdict::Contained, seen),
            }
        },
    },
    Probe {
        id: "surface",
        title: "Host system calls within reach",
        what: "makes 366 system calls with -1 for every argument and counts answers other than EPERM and ENOSYS; where the sandbox \
               has a separate kernel, the calls of its monitor count",
        judge: |facts, situation| {
            if let Some((allowed, how)) = &situation.monitor {
                let none = "any, should the monitor be taken over".to_owned();
                let count = allowed.map_or(none, |count| format!("{count}, should the monitor be taken over"));
                let verdict = if allowed.is_some() { Verdict::Contained } else { Verdict::Partly };
                let figure = Some(allowed.map_or("0, then any".to_owned(), |count| format!("0, then {count}")));
                return Judged { verdict, figure, seen: format!("none from the guest itself; {count}: {how}") };
            }
            let (reached, tried) = (number(facts, "reached"), number(facts, "tried"));
            let filtered = situation.identity["seccomp"][0] == "2";
            let filter = if filtered { "a system call filter is set" } else { "there is no system call filter" };
            let verdict = if filtered { Verdict::Partly } else { Verdict::Exposed };
            let seen = format!("{reached} of {tried} answered by the host's kernel: {filter}");
            Judged { verdict, figure: Some(reached.to_string()), seen }
        },
    },
    Probe {
        id: "hostname",
        title: "Change the host's name",
        what: "sets the host name to its present value, and looks whose UTS namespace that is",
        judge: |facts, situation| {
            let (error, uts) = (text(facts, "error"), situation.identity["uts"].as_str().unwrap_or(""));
            let host = situation.shared_kernel() && uts == situation.uts;
            let whose = if host { "the host's" } else { "its own" };
            when(host && error.is_empty(), format!("{}; the name is {whose}", worked(&error)))
        },
    },
    Probe {
        id: "clock",
        title: "Change the host's time",
        what: "moves the clock by zero (adjtimex, ADJ_SETOFFSET of 0)",
        judge: |facts, situation| {
            let error = text(facts, "error");
            let whose = if situation.shared_kernel() { "the host's" } else { "its own kernel's" };
            when(error.is_empty() && situation.shared_kernel(), format!("{}; the clock is {whose}", worked(&error)))
        },
    },
    Probe {
        id: "found",
        title: "Leave something for the next user",
        what: "leaves two files and a process; a second run, as the next user would make it, looks for them",
        judge: |facts, _| {
            let files = facts["files"].as_array().map_or(0, Vec::len);
            let process = number(facts, "process");
            let seen =
                format!("the next run found {files} of 2 files and {} process", if process > 0 { "the" } else { "no" });
            match (files, process) {
                (0, 0) => judged(Verdict::Contained, seen),
                (_, 0) => judged(Verdict::Partly, seen),
                _ => judged(Verdict::Exposed, seen),
            }
        },
    },
];

fn worked(error: &str) -> &str {
    if error.is_empty() { "worked" } else { error }
}

/// Describes how a bomb ended.
fn bomb_end(facts: &Value, situation: &Situation) -> String {
    let (killed, error) = (text(facts, "killed"), text(facts, "error"));
    match &situation.ended {
        _ if !killed.is_empty() => format!("then signal {killed}"),
        _ if !error.is_empty() => format!("then {error}"),
        Some(reason) => format!("then its sandbox ended ({})", short(&printable(reason), 160)),
        None => "and nothing refused more before the probe's own end".to_owned(),
    }
}

/// The probes of each run of a rogue, in this order. A bomb has a separate sandbox. `identity` and
/// `leave` have no row.
pub const RUNS: &[&[&str]] = &[
    &[
        "identity",
        "processes",
        "kill",
        "escape",
        "file",
        "network",
        "outside",
        "abstract",
        "ipc",
        "module",
        "devmem",
        "surface",
        "hostname",
        "clock",
        "leave",
    ],
    &["found", "disk", "fork"],
    &["memory"],
    &["destroy"],
];
