//! Requests of hosts: from received bytes to a response or a process.

mod attach;
mod files;

use crate::identity;
use crate::server::answer::{Outcome, bad_request, frame_failure, internal};
use crate::server::clock::{later, now};
use crate::server::connection::{Connection, End, Received};
use crate::server::state::{Ending, MAX_PROCESSES, Main, Role, Server};
use crate::server::token::{Pipe, Token};
use crate::slab::Key;
use rustix::event::epoll;
use sandboxvm_protocol::agent::main_process::MainProcess;
use sandboxvm_protocol::agent::{AgentMessage, ExecRequest, Failure, FailureKind, HostMessage, OnDisconnect, WIRE};
use sandboxvm_protocol::frame::{Frame, FrameKind};
use std::time::Duration;

/// Maximum number of buffers that [`Server::hear_out`] reads, for a host that never stops. A socket
/// holds far less.
const HEARD_OUT: usize = 64;

impl Server {
    /// Receives from a connection once, and responds to everything in one send.
    pub(super) fn receive(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(relay) = connection.relay {
            return self.make_relay_due(relay);
        }
        match connection.receive(&mut self.scratch) {
            Received::Nothing => {}
            Received::End(end) => self.disconnect(key, end),
            Received::Bytes(count) => {
                let more = count == self.scratch.len() || connection.hung_up;
                if !connection.closing {
                    self.take_frames(key, count);
                }
                self.flush(key);
                if more && self.connections.get_mut(key).is_some() {
                    self.receiving.push(key);
                }
            }
        }
    }

    /// Reads everything that a host has sent so far, because it will not be read later, or not in
    /// time.
    pub(super) fn hear_out(&mut self, key: Key) {
        for _ in 0..HEARD_OUT {
            let Some(connection) = self.connections.get_mut(key).filter(|it| !it.closing && it.relay.is_none()) else {
                return;
            };
            let Received::Bytes(count) = connection.receive(&mut self.scratch) else { return };
            self.take_frames(key, count);
        }
    }

    /// Notes that the host of a connection reads no more. Requests that it sent before still count.
    pub(super) fn lose_host(&mut self, key: Key, end: End) {
        if end == End::HostGone {
            self.hear_out(key);
        }
        self.disconnect(key, end);
    }

    /// Handles the frames that end in the first `count` bytes of the scratch buffer.
    fn take_frames(&mut self, key: Key, count: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        // Taken out of the connection meanwhile, because a frame borrows it and the handlers need
        // everything else.
        let mut decoder = std::mem::replace(&mut connection.decoder, Connection::fresh_decoder());
        decoder.push(&self.scratch[..count]);
        let mut started = false;
        loop {
            let outcome = match decoder.next_frame() {
                Ok(Some(frame)) => {
                    let had_process = self.process_of(key).is_some();
                    let outcome = self.handle(key, &frame);
                    started |= !had_process && self.process_of(key).is_some();
                    outcome
                }
                Ok(None) => break,
                Err(error) => Err(frame_failure(&error)),
            };
            if let Err(failure) = outcome {
                self.fail(key, failure);
                return;
            }
            if let Some(request) = self.file_request.take() {
                // Everything behind the request is for the process that serves it.
                self.hand_over(key, decoder, *request);
                return;
            }
            if self.becomes_relay(key) {
                if !decoder.is_at_boundary() {
                    self.fail(key, bad_request("something came between Connect and its answer"));
                }
                return;
            }
        }
        // A request may have been large, and later frames are small, so its memory is released.
        if !(started && decoder.is_at_boundary())
            && let Some(connection) = self.connections.get_mut(key)
        {
            connection.decoder = decoder;
        }
    }

    fn process_of(&mut self, key: Key) -> Option<Key> {
        self.connections.get_mut(key)?.process
    }

    fn handle(&mut self, key: Key, frame: &Frame<'_>) -> Outcome {
        match frame.kind {
            FrameKind::Message => {
                let message = WIRE.decode_message(frame.body).map_err(|error| frame_failure(&error))?;
                self.handle_message(key, message)
            }
            FrameKind::Stdin => self.take_stdin(key, frame.body),
            FrameKind::Stdout | FrameKind::Stderr => Err(bad_request("only the agent sends stdout and stderr")),
        }
    }

    fn handle_message(&mut self, key: Key, message: HostMessage) -> Outcome {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        if connection.version.is_some() == matches!(message, HostMessage::Hello { .. }) {
            return Err(bad_request("Hello comes first on a connection, and once"));
        }
        // Its host may have handed it to another process, for this one process of the sandbox.
        let is_of_its_process = matches!(
            message,
            HostMessage::StdinEof | HostMessage::Signal(_) | HostMessage::Resize(_) | HostMessage::Ping
        );
        if connection.serves_process && !is_of_its_process {
            return Err(bad_request("this connection belongs to a process; open another for other requests"));
        }
        match message {
            HostMessage::Hello { oldest, newest } => {
                let version = newest.min(WIRE.version);
                if version < oldest.max(WIRE.oldest) {
                    let (our_oldest, ours) = (WIRE.oldest, WIRE.version);
                    return Err(Failure {
                        kind: FailureKind::UnsupportedVersion,
                        message: format!(
                            "host speaks wire versions {oldest} to {newest}, this agent {our_oldest} to {ours}; \
                             use a host that still speaks the agent's"
                        ),
                    });
                }
                connection.version = Some(version);
                connection.queue(&AgentMessage::Hello { version });
            }
            HostMessage::Ping => connection.queue(&AgentMessage::Pong),
            HostMessage::Exec(request) => return self.exec(key, &request, None),
            HostMessage::ExecMain(request) => return self.exec(key, &request.process, Some(request.main)),
            HostMessage::StdinEof => {
                if let Some(process) = connection.process.and_then(|process| self.processes.get_mut(process))
                    && process.feeder == Some(key)
                    && let Some(stdin) = &mut process.stdin
                {
                    stdin.end();
                }
            }
            HostMessage::Signal(signal) => match connection.process {
                None => return Err(bad_request("no process runs on this connection to be signalled")),
                Some(process) => {
                    if let Some(process) = self.processes.get_mut(process) {
                        process.signal(signal);
                    }
                }
            },
            HostMessage::Resize(size) => {
                if let Some(process) = connection.process.and_then(|process| self.processes.get_mut(process)) {
                    process.resize(size);
                }
            }
            HostMessage::SetIdentity(_) if self.role == Role::Service => {
                return Err(bad_request("this agent is not PID 1 of a sandbox: the machine's identity is not its own"));
            }
            HostMessage::SetIdentity(identity) => {
                identity::apply(&identity, &self.identity).map_err(|error| internal(error.to_string()))?;
                connection.queue(&AgentMessage::IdentitySet);
            }
            HostMessage::SetLimits(_) if self.role == Role::Service => {
                return Err(bad_request("this agent is not PID 1 of a sandbox: its processes are not all there are"));
            }
            HostMessage::SetLimits(limits) => {
                self.spawner.limit(&limits);
                connection.queue(&AgentMessage::LimitsSet);
            }
            HostMessage::Shutdown { grace_ms } => {
                connection.queue(&AgentMessage::ShuttingDown);
                // Sent before any process ends, because the response must not wait for them. If the
                // host has closed the connection, a later send notices.
                let _ = connection.flush();
                self.begin_ending(Duration::from_millis(u64::from(grace_ms)));
            }
            HostMessage::ListProcesses { after } => self.list(key, after),
            HostMessage::Attach(request) => return self.attach(key, &request),
            HostMessage::SignalProcess { pid, signal } => return self.signal_process(key, pid, signal),
            HostMessage::Files(request) => return self.work_on_files(key, request),
            HostMessage::Connect(request) => return self.connect(key, request),
        }
        Ok(())
    }

    fn exec(&mut self, key: Key, request: &ExecRequest, main: Option<MainProcess>) -> Outcome {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        if connection.process.is_some() {
            return Err(bad_request("a process was started on this connection already; open another"));
        }
        if self.ending != Ending::No {
            return Err(internal("the sandbox is shutting down".to_owned()));
        }
        if self.processes.len() - self.remembered.len() >= MAX_PROCESSES {
            let message = "the agent runs as many processes as it can; end some first".to_owned();
            return Err(Failure { kind: FailureKind::Resources, message });
        }
        if main.is_some() && self.main.is_some() {
            return Err(bad_request("the sandbox has a main process already"));
        }
        let is_init = main.is_some_and(|main| main.is_init);
        let mut process = if is_init { self.spawner.spawn_init(request)? } else { self.spawner.spawn(request)? };
        process.owner = Some(key);
        process.feeder = process.stdin.as_ref().map(|_| key);
        process.started_at = now();
        process.deadline = request.timeout_ms.map(|timeout| later(Duration::from_millis(timeout)));
        connection.may_feed = process.feeder.is_some();
        let pid = process.number();
        let inserted = self.processes.insert(process);
        let Ok(process_key) = inserted else {
            // Cannot happen: there was room above, and nothing was added since.
            return Err(internal("the process table is full".to_owned()));
        };
        self.main = main.map(|main| Main { key: process_key, stop_signal: main.stop_signal }).or(self.main);
        self.is_childless = false;
        connection.process = Some(process_key);
        connection.serves_process = true;
        connection.queue(&AgentMessage::Started { pid });
        self.pid_is_reused(pid);
        if request.on_disconnect == OnDisconnect::Keep {
            self.keep(process_key);
        }
        self.watch_outputs(process_key).map_err(|errno| internal(format!("cannot watch the process's output: {errno}")))
    }

    fn watch_outputs(&mut self, key: Key) -> Result<(), rustix::io::Errno> {
        let Some(process) = self.processes.get_mut(key) else { return Ok(()) };
        for (output, pipe) in process.outputs.iter().zip([Pipe::Stdout, Pipe::Stderr]) {
            if let Some(output) = output {
                let data = epoll::EventData::new_u64(Token::Pipe(pipe, key).pack());
                epoll::add(&self.epoll, output, data, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
            }
        }
        Ok(())
    }

    fn take_stdin(&mut self, key: Key, bytes: &[u8]) -> Outcome {
        let process_key = self.process_of(key).ok_or_else(|| bad_request("stdin came before a process was started"))?;
        if let Some(process) = self.processes.get_mut(process_key)
            && let Some(stdin) = &mut process.stdin
        {
            if process.feeder != Some(key) {
                return self.take_stray_stdin(key);
            }
            stdin.offer(bytes).map_err(|error| bad_request(&error.to_string()))?;
            // For the credit, and to watch the pipe if it is full.
            self.make_due(process_key);
        }
        Ok(())
    }

    /// Handles stdin that its process does not get: from a host that another has replaced, or that
    /// never asked to send some.
    fn take_stray_stdin(&mut self, key: Key) -> Outcome {
        match self.connections.get_mut(key) {
            Some(connection) if !connection.may_feed => {
                Err(bad_request("this connection did not ask to feed the process's input"))
            }
            _ => Ok(()),
        }
    }

    /// Sends a failure and ends the connection. For its process, the host is gone.
    pub(super) fn fail(&mut self, key: Key, failure: Failure) {
        self.end_relay_of(key);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.queue(&AgentMessage::Failed(failure));
            connection.closing = true;
        }
    }

    /// Sends waiting bytes of a connection, and closes it if it has nothing else to do.
    pub(super) fn flush(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        match connection.flush() {
            Err(end) => self.lose_host(key, end),
            Ok(()) => self.settle(key),
        }
    }

    /// Handles the state after a send: closes a connection that only waited for it, or lets epoll
    /// report when there is room. While the machine ends, the last messages are still being sent,
    /// and `part_with_hosts` closes the connection later.
    pub(super) fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if !connection.is_stalled() {
            if connection.closing && self.ending == Ending::No {
                self.disconnect(key, End::HostGone);
            }
        } else {
            self.watch_room(key);
        }
    }

    /// Lets epoll also report when a connection accepts bytes again.
    pub(super) fn watch_room(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key).filter(|connection| !connection.watches_room) else {
            return;
        };
        connection.watches_room = true;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(Token::Connection(key).pack());
        // A connection is not watched in its first turn. Watching then starts with this flag.
        let _ = epoll::modify(&self.epoll, &*connection, data, flags);
    }
}
