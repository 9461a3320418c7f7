//! The end of the machine in the server: every process gets the chance to end, and then is killed.
//!
//! The server keeps serving meanwhile, so that last output and exit statuses reach their hosts. The
//! caller does everything after the last process (disks, reset).

use super::clock::{later, now};
use super::state::{Ending, Role, Server};
use crate::slab::Key;
use sandboxvm_protocol::agent::SignalNumber;
use std::time::Duration;

/// Time between SIGKILL to all processes and giving up on those that did not end.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How long hosts may take to read the last messages, and then the VMM to receive them. A
/// connection that begins to close later is not waited for.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

impl Server {
    /// Starts the end of the machine. The main process gets its stop signal, and the others SIGTERM when it
    /// has ended; without one, all get SIGTERM now. After `grace`, all get SIGKILL.
    pub(super) fn begin_ending(&mut self, grace: Duration) {
        if self.ending == Ending::No {
            if !self.stop_main() {
                self.signal_everything(SignalNumber::TERM);
            }
            self.ending = Ending::Terminating(later(grace));
            self.reap();
        }
    }

    /// Sends the main process its stop signal: only to itself, since it may tell its children otherwise.
    /// Returns false if there is none.
    fn stop_main(&mut self) -> bool {
        let Some(main) = self.main else { return false };
        let Some(process) = self.processes.get_mut(main.key).filter(|process| process.ended.is_none()) else {
            return false;
        };
        // SAFETY: kill(2) touches no memory. The process is not reaped, so the PID is still its own.
        unsafe { libc::kill(process.pid.as_raw_pid(), i32::from(main.stop_signal.get())) == 0 }
    }

    /// Notes that a process was reaped, which may be the main process. With an init system, the kernel has
    /// killed all processes in its namespaces.
    pub(super) fn note_end_of_main(&mut self, key: Key) {
        if self.main.is_none_or(|main| main.key != key) {
            return;
        }
        self.main = None;
        self.spawner.init_ended();
        if matches!(self.ending, Ending::Terminating(_)) {
            self.signal_everything(SignalNumber::TERM);
        }
    }

    fn signal_everything(&mut self, signal: SignalNumber) {
        match self.role {
            // SAFETY: kill(2) touches no memory. For PID 1, -1 means every process but itself.
            Role::Init => drop(unsafe { libc::kill(-1, i32::from(signal.get())) }),
            Role::Service => self.processes.iter_mut().for_each(|(_, process)| process.signal(signal)),
        }
    }

    /// Takes the next step, if it is due.
    pub(super) fn go_on_ending(&mut self, now: u64) {
        match self.ending {
            Ending::Terminating(at) if at <= now => {
                self.signal_everything(SignalNumber::KILL);
                self.ending = Ending::Killing(later(KILL_GRACE));
            }
            Ending::Killing(at) if at <= now => self.is_childless = true,
            _ => {}
        }
    }

    /// Closes all connections and waits for the VMM to confirm that. The kernel sends the bytes of
    /// a vsock connection later, and a reset of the machine would lose them: the response to the
    /// shutdown, and exit statuses. Bytes that a client does not read from the VMM are lost anyway.
    pub(super) fn part_with_hosts(&mut self) {
        let deadline = later(LAST_WORDS_WITHIN);
        let open: Vec<_> = self.connections.iter_mut().map(|(key, _)| key).collect();
        for connection in open.into_iter().filter_map(|key| self.connections.remove(key)) {
            if now() < deadline {
                connection.linger();
            }
        }
    }

    /// Returns true if nothing is left to wait for: no process, and no data of one that a host is
    /// about to receive.
    pub(super) fn has_ended(&mut self) -> bool {
        if self.ending == Ending::No || !self.is_childless {
            return false;
        }
        let until = match self.ending {
            Ending::Parting(until) => until,
            _ => later(LAST_WORDS_WITHIN),
        };
        self.ending = Ending::Parting(until);
        let is_said =
            self.due.is_empty() && self.connections.iter_mut().all(|(_, connection)| !connection.is_stalled());
        is_said || until <= now()
    }
}
