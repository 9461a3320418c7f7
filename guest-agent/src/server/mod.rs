//! The event loop: one thread and one epoll, in which all waits of the agent happen.
//!
//! ```text
//! listener --accept--> Connection --requests--> Process --streams--> Connection
//!                                     SIGCHLD --reap--^
//!                        Connection <--Relay--> program's TCP socket
//! ```
//! A turn takes a batch of events and only notes them. Then it reaps, so that the last output of a
//! process and its exit status are sent in one packet. Then it serves each process once that has
//! something to read, send or feed. Connections and pipes are edge-triggered and added once, so no
//! call is needed to change what epoll watches while a slow host stalls a process. If a process has
//! more data than one turn moves, the next turn serves it without waiting.
//!
//! Limits: [`MAX_CONNECTIONS`], [`state::MAX_PROCESSES`], [`relays::MAX_RELAYS`] with two chunks
//! each, one frame and one read buffer for each connection, one stdin window for each process, and
//! the output that [`detached`] keeps.

mod answer;
mod clock;
mod connection;
mod detached;
mod ending;
mod error;
pub(crate) mod listener;
mod relays;
mod requests;
mod signals;
mod state;
mod streams;
mod token;

pub(crate) use error::ServerError;
pub(crate) use state::{Role, Server};

use crate::identity::IdentityFiles;
use crate::process::Process;
use crate::process::cgroups::Cgroups;
use crate::process::limit_counts::LimitCounts;
use crate::process::start::Spawner;
use crate::slab::{Key, Slab};
use clock::{later, now};
use connection::{Connection, End};
use detached::MAX_REMEMBERED;
use listener::{Accepted, Listener};
use relays::MAX_RELAYS;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use sandboxvm_protocol::agent::{AgentMessage, Failure, FailureKind, OnDisconnect, SignalNumber};
use signals::{child_signals, disinherit, exit_status};
use state::{Ending, MAX_PROCESSES};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use token::{Pipe, Token};

/// Maximum number of connections. An additional one receives a failure and is closed.
const MAX_CONNECTIONS: u32 = 1024;

/// How long accepting pauses if there is no file descriptor or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Maximum number of children that are reaped in one turn, because a guest can create orphans as
/// fast as that.
const REAPED: usize = 256;

/// Maximum number of events in one turn.
const BATCH: usize = 64;

impl Server {
    /// Takes over signals and starts to listen. The caller must have a single thread. Processes are
    /// put into `cgroups`. `upper` is the upper directory of the overlay.
    pub(crate) fn new(
        role: Role,
        listener: Listener,
        identity: IdentityFiles,
        cgroups: Option<Cgroups>,
        upper: Option<OwnedFd>,
    ) -> Result<Self, ServerError> {
        let setup = |step| move |errno| ServerError::Setup { step, errno };
        let spawner = Spawner::new(role == Role::Init, cgroups).map_err(setup("open /dev/null"))?;
        if role == Role::Service {
            disinherit();
        }
        let signals = child_signals().map_err(setup("take over signals"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(setup("create an epoll"))?;
        let server = Self {
            role,
            identity,
            epoll,
            signals,
            listener,
            accept_again: None,
            connections: Slab::new(MAX_CONNECTIONS),
            // One more is remembered for a moment, until the first is forgotten.
            processes: Slab::new((MAX_PROCESSES + MAX_REMEMBERED + 1) as u32),
            main: None,
            remembered: VecDeque::new(),
            relays: Slab::new(MAX_RELAYS),
            spawner,
            limit_counts: (role == Role::Init).then(LimitCounts::begin),
            scratch: vec![0; streams::SCRATCH].into_boxed_slice(),
            file_workers: Vec::new(),
            file_request: None,
            upper,
            receiving: Vec::new(),
            due: Vec::new(),
            relays_due: Vec::new(),
            reap_due: false,
            is_childless: true,
            ending: Ending::No,
        };
        server.watch(&server.listener, Token::Listener, epoll::EventFlags::IN).map_err(setup("watch the listener"))?;
        server.watch(&server.signals, Token::Signals, epoll::EventFlags::IN).map_err(setup("watch for children"))?;
        // The first use of the clock maps pages. It happens here once for all machines that are
        // restored from this one, and not in the first exec of each.
        let _ = now();
        Ok(server)
    }

    /// Serves until a shutdown was requested and all processes have ended.
    pub(crate) fn run(&mut self) -> Result<(), ServerError> {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; BATCH];
        loop {
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok((events, _)) => {
                    for event in events {
                        if let Some(token) = Token::unpack(event.data.u64()) {
                            self.note(token, event.flags)?;
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ServerError::Setup { step: "wait for events", errno }),
            }
            if self.turn() {
                self.part_with_hosts();
                return Ok(());
            }
        }
    }

    /// Does everything that is due. Returns true when the agent should end.
    fn turn(&mut self) -> bool {
        for key in std::mem::take(&mut self.receiving) {
            self.receive(key);
        }
        if self.reap_due {
            self.reap();
        }
        self.act_on_deadlines();
        for key in std::mem::take(&mut self.due) {
            self.serve_process(key);
        }
        for key in std::mem::take(&mut self.relays_due) {
            self.serve_relay(key);
        }
        self.has_ended()
    }

    /// Notes an event.
    fn note(&mut self, token: Token, flags: epoll::EventFlags) -> Result<(), ServerError> {
        let has = |flag| flags.intersects(flag);
        let error = epoll::EventFlags::ERR;
        let hung_up = epoll::EventFlags::HUP | error;
        match token {
            Token::Listener => return self.accept(has(hung_up)),
            Token::Signals => self.reap_due = true,
            Token::Connection(key) => {
                let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
                if let Some(relay) = connection.relay {
                    self.note_host(relay, flags);
                    return Ok(());
                }
                connection.hung_up |= has(hung_up | epoll::EventFlags::RDHUP);
                if has(epoll::EventFlags::IN) || connection.hung_up {
                    self.receiving.push(key);
                }
                if has(epoll::EventFlags::OUT) {
                    self.resume(key);
                }
            }
            Token::Relay(key) => self.note_program(key, flags),
            Token::Pipe(pipe, key) => {
                let Some(process) = self.processes.get_mut(key) else { return Ok(()) };
                match pipe {
                    Pipe::Stdin => {
                        if let Some(stdin) = &mut process.stdin {
                            stdin.drain();
                        }
                    }
                    Pipe::Stdout | Pipe::Stderr => {
                        if let Some(output) = &mut process.outputs[usize::from(pipe == Pipe::Stderr)] {
                            output.note(has(epoll::EventFlags::IN), has(hung_up));
                        }
                    }
                }
                self.make_due(key);
            }
        }
        Ok(())
    }

    /// Accepts one connection and reads its first packet, because the host sends first.
    fn accept(&mut self, listener_failed: bool) -> Result<(), ServerError> {
        match if listener_failed { Accepted::Broken } else { self.listener.accept() } {
            Accepted::Host(socket) => {
                let connection = Connection::new(socket, self.listener.transport());
                match self.connections.insert(connection) {
                    Ok(key) => {
                        self.receive(key);
                        self.watch_connection(key);
                    }
                    Err(mut connection) => {
                        let message = format!("too many connections: the agent serves {MAX_CONNECTIONS} at a time");
                        connection.queue(&AgentMessage::Failed(Failure { kind: FailureKind::Resources, message }));
                        // The connection is closed in either case.
                        let _ = connection.flush();
                    }
                }
            }
            Accepted::None => {}
            Accepted::Exhausted => {
                // The listener is level-triggered, so it would wake the agent without end.
                let _ = epoll::delete(&self.epoll, &self.listener);
                self.accept_again = Some(later(ACCEPT_PAUSE));
            }
            Accepted::Broken => {
                self.listener.renew()?;
                self.watch(&self.listener, Token::Listener, epoll::EventFlags::IN)
                    .map_err(|errno| ServerError::Setup { step: "watch the listener again", errno })?;
            }
        }
        Ok(())
    }

    fn watch(&self, file: impl AsFd, token: Token, flags: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, file, epoll::EventData::new_u64(token.pack()), flags)
    }

    /// Watches a connection that exists after its first turn.
    fn watch_connection(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        if connection.is_stalled() {
            connection.watches_room = true;
            flags |= epoll::EventFlags::OUT;
        }
        let data = epoll::EventData::new_u64(Token::Connection(key).pack());
        if epoll::add(&self.epoll, &*connection, data, flags).is_err() {
            self.disconnect(key, End::HostGone);
        }
    }

    /// Reaps all children that have ended: processes of the table and orphans.
    fn reap(&mut self) {
        self.reap_due = false;
        let mut information = [0; size_of::<libc::signalfd_siginfo>()];
        // This only re-arms the descriptor. One SIGCHLD may stand for many children, so the loop
        // below asks for them.
        let _ = rustix::io::read(&self.signals, &mut information);
        for _ in 0..REAPED {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    self.file_workers.retain(|worker| *worker != pid);
                    // A process that ended before may have had the same PID.
                    let is_it = |process: &Process| process.pid == pid && process.ended.is_none();
                    let found = self.processes.iter_mut().find(|(_, process)| is_it(process));
                    if let Some((key, process)) = found
                        && let Some(status) = exit_status(status)
                    {
                        process.end(status);
                        if let Some(kept) = &mut process.kept {
                            kept.ended_at = Some(now());
                        }
                        self.make_due(key);
                        self.note_end_of_main(key);
                    }
                }
                Err(Errno::INTR) => {}
                none => {
                    self.is_childless = none.is_err();
                    return;
                }
            }
        }
        self.reap_due = true;
        self.is_childless = false;
    }

    /// Makes the server look at a process in this turn or the next.
    fn make_due(&mut self, key: Key) {
        if let Some(process) = self.processes.get_mut(key)
            && !process.is_due
        {
            process.is_due = true;
            self.due.push(key);
        }
    }

    /// Returns how long the next wait may last.
    fn timeout(&mut self) -> Option<Timespec> {
        if self.reap_due || ![&self.due, &self.receiving, &self.relays_due].iter().all(|list| list.is_empty()) {
            return Some(Timespec { tv_sec: 0, tv_nsec: 0 });
        }
        let next = self.deadlines().min()?;
        let left = Duration::from_nanos(next.saturating_sub(now()));
        // Rounded up to milliseconds, because the call then needs only a simple timeout.
        let left = Duration::from_millis(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1));
        let longest = Duration::from_secs(3600);
        Timespec::try_from(left.min(longest)).ok()
    }

    fn deadlines(&mut self) -> impl Iterator<Item = u64> {
        let ending = self.ending.deadline();
        let processes = self.processes.iter_mut().filter_map(|(_, process)| process.deadline);
        processes.chain(self.accept_again).chain(ending)
    }

    fn act_on_deadlines(&mut self) {
        if self.deadlines().next().is_none() {
            return;
        }
        let now = now();
        for (_, process) in self.processes.iter_mut() {
            if process.deadline.is_some_and(|deadline| deadline <= now) {
                process.deadline = None;
                process.timed_out = true;
                process.signal(SignalNumber::KILL);
            }
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            let watched = self.watch(&self.listener, Token::Listener, epoll::EventFlags::IN);
            self.accept_again = watched.is_err().then(|| later(ACCEPT_PAUSE));
        }
        self.go_on_ending(now);
    }

    /// Forgets a connection and notifies its process.
    fn disconnect(&mut self, key: Key, end: End) {
        self.end_relay_of(key);
        let Some(connection) = self.connections.remove(key) else { return };
        let Some(process_key) = connection.process else { return };
        let Some(process) = self.processes.get_mut(process_key) else { return };
        if process.feeder == Some(key) {
            process.feeder = None;
        }
        if let Some(kept) = &mut process.kept {
            kept.leave(key);
        }
        if process.owner == Some(key) {
            process.owner = None;
            self.lose_owner(process_key, &connection, end);
        }
        self.make_due(process_key);
    }

    /// Handles the end of the connection that started a process, as the process requests.
    fn lose_owner(&mut self, key: Key, connection: &Connection, end: End) {
        let Some(process) = self.processes.get_mut(key) else { return };
        match (end, process.on_disconnect) {
            (End::HostGone, _) if process.was_told && process.kept.is_none() => drop(self.processes.remove(key)),
            (End::HostGone, OnDisconnect::Kill) => {
                process.signal(SignalNumber::KILL);
                process.stdin = None;
                // Other connections may read its last output.
                if process.kept.is_none() {
                    process.outputs = [None, None];
                }
            }
            (End::HostGone, OnDisconnect::RunOn) => {
                if let Some(stdin) = &mut process.stdin {
                    stdin.end();
                }
                self.keep(key);
            }
            (End::HostGone, OnDisconnect::Keep) => {}
            // The process of a restored machine is unchanged, and its input only pauses. The output
            // that its host did not receive is the first that is kept.
            (End::TransportReset, _) => {
                let has_scrollback = process.kept.is_some();
                self.keep(key);
                if let Some(kept) = self.processes.get_mut(key).and_then(|process| process.kept.as_mut())
                    && !has_scrollback
                {
                    connection.unsent_output().for_each(|(kind, output)| kept.scrollback.push(kind, output));
                }
            }
        }
    }
}
