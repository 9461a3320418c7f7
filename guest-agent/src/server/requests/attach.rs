//! Requests about processes that other connections started, found again by PID.
//!
//! Only the table of processes is searched, so a PID that no host ever received is not found.

use crate::process::Process;
use crate::server::answer::{Outcome, bad_request};
use crate::server::clock::now;
use crate::server::state::Server;
use crate::slab::Key;
use sandboxvm_protocol::agent::process::{
    AttachRequest, Attached, MAX_PAGE, ProcessInfo, ProcessPage, ProcessState, View,
};
use sandboxvm_protocol::agent::{AgentMessage, Failure, FailureKind, SignalNumber};

impl Server {
    /// Responds with the processes whose PIDs come after `after`.
    pub(super) fn list(&mut self, key: Key, after: u32) {
        let mut keys: Vec<(u32, bool, Key)> = self
            .processes
            .iter_mut()
            .map(|(key, process)| (process.number(), process.ended.is_some(), key))
            .filter(|(pid, ..)| *pid > after)
            .collect();
        // Of two with the same PID, the running one.
        keys.sort_unstable_by_key(|(pid, has_ended, _)| (*pid, *has_ended));
        keys.dedup_by_key(|(pid, ..)| *pid);
        let more = keys.len() > MAX_PAGE;
        let now = now();
        let processes = keys.into_iter().take(MAX_PAGE);
        let processes =
            processes.filter_map(|(_, _, key)| self.processes.get_mut(key).map(|it| describe(it, now))).collect();
        if let Some(connection) = self.connections.get_mut(key) {
            connection.queue(&AgentMessage::Processes(ProcessPage { processes, more }));
        }
    }

    /// Attaches a connection to a process.
    pub(super) fn attach(&mut self, key: Key, request: &AttachRequest) -> Outcome {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        if connection.process.is_some() {
            return Err(bad_request("this connection has a process already; open another"));
        }
        let process_key = self.find(request.pid)?;
        self.keep(process_key);
        // From now on the new host feeds the process. Input that the other host sent before may
        // still be on its connection.
        if request.stdin
            && let Some(feeder) = self.processes.get_mut(process_key).and_then(|process| process.feeder)
        {
            self.hear_out(feeder);
            // Sends the responses to that, if there are any.
            self.flush(feeder);
        }
        let Some(process) = self.processes.get_mut(process_key) else { return Ok(()) };
        let pid = request.pid;
        let mut stdin_credit = None;
        // A process that has ended only shows its remaining output, whatever the host requested.
        if process.ended.is_none() {
            // All checks that can refuse the request come before the present feeder loses its
            // place.
            if request.terminal.is_some() && !process.has_terminal {
                return Err(bad_request(&format!("process {pid} has no terminal: it was started without")));
            }
            if request.stdin {
                let stdin = process.stdin.as_mut().filter(|stdin| stdin.is_open());
                let stdin = stdin.ok_or_else(|| {
                    bad_request(&format!(
                        "process {pid} takes no input: it was started without, or its input was ended"
                    ))
                })?;
                stdin_credit = Some(stdin.change_feeder());
            }
            if let Some(size) = request.terminal {
                process.resize(size);
            }
        }
        if stdin_credit.is_some() {
            process.feeder = Some(key);
        }
        if let Some(kept) = &mut process.kept {
            kept.join(key, request.view);
        }
        if let Some(connection) = self.connections.get_mut(key) {
            connection.process = Some(process_key);
            connection.serves_process = true;
            connection.may_feed = stdin_credit.is_some();
            connection.queue(&AgentMessage::Attached(Attached { stdin_credit }));
        }
        self.make_due(process_key);
        Ok(())
    }

    /// Signals the process group of a process.
    pub(super) fn signal_process(&mut self, key: Key, pid: u32, signal: SignalNumber) -> Outcome {
        let process_key = self.find(pid)?;
        if let Some(process) = self.processes.get_mut(process_key) {
            if process.ended.is_some() {
                return Err(no_such_process(format!("process {pid} has ended")));
            }
            process.signal(signal);
        }
        if let Some(connection) = self.connections.get_mut(key) {
            connection.queue(&AgentMessage::Signalled);
        }
        Ok(())
    }

    /// Returns the process with this PID: the running one, or otherwise the one that has ended.
    fn find(&mut self, pid: u32) -> Result<Key, Failure> {
        let with_pid = self.processes.iter_mut().filter(|(_, process)| process.number() == pid);
        let found = with_pid.min_by_key(|(_, process)| process.ended.is_some());
        found.map(|(key, _)| key).ok_or_else(|| {
            no_such_process(format!(
                "no process {pid} was started through sandboxvm, or it ended long ago and was forgotten"
            ))
        })
    }
}

fn no_such_process(message: String) -> Failure {
    Failure { kind: FailureKind::NoSuchProcess, message }
}

fn describe(process: &Process, now: u64) -> ProcessInfo {
    let since = |then: u64| now.saturating_sub(then) / 1_000_000;
    let kept = process.kept.as_ref();
    let ended_at = kept.and_then(|kept| kept.ended_at);
    let state = match process.ended {
        None => ProcessState::Running,
        Some(status) => ProcessState::Ended { status, ago_ms: ended_at.map_or(0, since) },
    };
    let (argv, argv_is_cut) = process.title.shown();
    let watchers = kept.map_or(usize::from(process.owner.is_some()), |kept| {
        kept.watchers.iter().filter(|watcher| watcher.view != View::End).count()
    });
    ProcessInfo {
        pid: process.number(),
        argv,
        argv_is_cut,
        age_ms: since(process.started_at),
        state,
        stdin_is_open: process.stdin.as_ref().is_some_and(|stdin| stdin.is_open()),
        has_terminal: process.has_terminal,
        connections: u32::try_from(watchers).unwrap_or(u32::MAX),
        kept_bytes: kept.map_or(0, |kept| kept.scrollback.len() as u64),
        dropped_bytes: kept.map_or(0, |kept| kept.scrollback.start()),
    }
}
