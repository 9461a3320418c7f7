//! Output of processes on its way to their hosts, and the credit for their input.
//!
//! What a process wrote is read straight behind a frame header, so that one send carries what both streams hold, the
//! credit and the exit status. While a connection is stalled its process is not read from: the pipe fills, and the
//! process waits in its write. This is the way of a process that its owner alone attends; that of others is in
//! [`super::detached`].

use super::state::Server;
use super::token::{Pipe, Token};
use crate::process::Process;
use crate::process::limit_counts::LimitCounts;
use crate::process::output::Output;
use crate::slab::Key;
use rustix::event::epoll;
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus, MAX_AGENT_MESSAGE, SINCE_LIMITS_HIT, WIRE};
use sandboxvm_protocol::frame::{HEADER_LEN, MAX_STREAM_BODY};

/// Kept free behind the streams for the messages of one turn: credit, limits that were met, and exit status.
pub(super) const MESSAGES: usize = 96;

/// Size of the server's buffer: a full pipe in one frame, a header for the other stream, and the messages.
pub(super) const SCRATCH: usize = MAX_STREAM_BODY + 2 * HEADER_LEN + MESSAGES;

impl Server {
    /// Moves what can be moved of one process, once.
    pub(super) fn serve_process(&mut self, key: Key) {
        let Some(process) = self.processes.get_mut(key) else { return };
        process.is_due = false;
        if let Some(stdin) = &mut process.stdin
            && !stdin.is_watched
            && let Some(file) = stdin.blocked_on()
        {
            let data = epoll::EventData::new_u64(Token::Pipe(Pipe::Stdin, key).pack());
            stdin.is_watched =
                epoll::add(&self.epoll, file, data, epoll::EventFlags::OUT | epoll::EventFlags::ET).is_ok();
        }
        if process.kept.is_some() {
            self.serve_kept(key);
            return;
        }
        if process.was_told {
            return;
        }
        let connection_key = process.owner;
        let mut connection = connection_key.and_then(|connection| self.connections.get_mut(connection));
        if connection.as_ref().is_some_and(|connection| connection.is_stalled()) {
            // Its room is watched: that brings this process back.
            return;
        }
        let mut filled = collect(process, &mut self.scratch);
        let is_finished = process.is_finished();
        let mut sent = Ok(());
        if let Some(connection) = &mut connection {
            if is_finished
                && process.ended != Some(ExitStatus::Code(0))
                && connection.version >= Some(SINCE_LIMITS_HIT)
                && let Some(hit) = self.limit_counts.as_mut().and_then(LimitCounts::since_last)
            {
                filled += put_message(&AgentMessage::LimitsHit(hit), &mut self.scratch[filled..]);
            }
            filled += append_messages(process, &mut self.scratch[filled..]);
            if filled > 0 {
                sent = connection.transmit(&self.scratch[..filled]);
            }
            if is_finished {
                connection.closing = true;
                if connection.is_stalled() {
                    // Stays until the last of it is sent: a transport reset may still come before that.
                    process.was_told = true;
                } else {
                    connection.process = None;
                }
            }
        }
        let has_more = process.has_output();
        if is_finished {
            if !process.was_told {
                self.processes.remove(key);
            }
        } else if has_more {
            self.make_due(key);
        }
        if let Some(connection) = connection_key {
            match sent {
                Ok(()) => self.settle(connection),
                Err(end) => self.lose_host(connection, end),
            }
        }
    }

    /// The socket takes bytes again: sends what waited, and lets the process continue.
    pub(super) fn resume(&mut self, key: Key) {
        self.flush(key);
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.is_stalled()
            && let Some(process) = connection.process
        {
            self.make_due(process);
        }
    }
}

/// Reads what the outputs hold into frames at the start of `buffer`; the value is their length together.
fn collect(process: &mut Process, buffer: &mut [u8]) -> usize {
    let first = process.first_output;
    let mut filled = 0;
    for index in [first, 1 - first] {
        let Some(output) = process.outputs.get_mut(index).and_then(Option::as_mut) else { continue };
        if !output.is_readable() {
            continue;
        }
        let room = buffer.len().saturating_sub(MESSAGES);
        let Some(frame) = buffer.get_mut(filled..room).filter(|frame| frame.len() > HEADER_LEN) else {
            process.first_output = index;
            break;
        };
        filled += read_frame(output, frame);
    }
    filled
}

/// Reads one frame's worth of `output` into `frame`, header first; 0 when there was nothing.
fn read_frame(output: &mut Output, frame: &mut [u8]) -> usize {
    let Some((header, body)) = frame.split_first_chunk_mut::<HEADER_LEN>() else { return 0 };
    let room = body.len().min(MAX_STREAM_BODY);
    let body = &mut body[..room];
    let mut len = 0;
    while output.is_readable() && len < room {
        len += output.read(&mut body[len..]);
    }
    if len == 0 {
        return 0;
    }
    // Cannot fail: the length is below the cap of a stream frame.
    let Ok(bytes) = WIRE.header(output.kind(), len) else { return 0 };
    *header = bytes;
    HEADER_LEN + len
}

/// Puts what there is to say about `process` into `buffer`; the value is its length.
fn append_messages(process: &mut Process, buffer: &mut [u8]) -> usize {
    let credit = process.stdin.as_mut().and_then(|stdin| stdin.take_credit());
    let credit = credit.map(|bytes| AgentMessage::StdinCredit { bytes });
    let exited = process.ended.filter(|_| process.is_finished()).map(AgentMessage::Exited);
    let mut filled = 0;
    for message in credit.iter().chain(&exited) {
        filled += put_message(message, &mut buffer[filled..]);
    }
    filled
}

/// Puts a short message into `buffer`, which has room for [`MESSAGES`]; the value is its length.
pub(super) fn put_message(message: &AgentMessage, buffer: &mut [u8]) -> usize {
    let mut frame = Vec::new();
    // No message that is put here comes near the cap, the only thing that can fail.
    let _ = WIRE.append_message(&mut frame, message, MAX_AGENT_MESSAGE);
    let len = frame.len().min(buffer.len());
    buffer[..len].copy_from_slice(&frame[..len]);
    len
}
