//! Sends the output of processes to their hosts, and the credit for their input.
//!
//! Output is read directly behind a frame header, so one send contains the output of both streams,
//! the credit and the exit status. While a connection is stalled, its process is not read: the pipe
//! fills, and the process blocks in its write. This is for a process that only its owner attends.
//! [`super::detached`] handles the others.

use super::state::Server;
use super::token::{Pipe, Token};
use crate::process::Process;
use crate::process::limit_counts::LimitCounts;
use crate::process::output::Output;
use crate::slab::Key;
use rustix::event::epoll;
use sandboxvm_protocol::agent::{AgentMessage, ExitStatus, MAX_AGENT_MESSAGE, SINCE_LIMITS_HIT, WIRE};
use sandboxvm_protocol::frame::{HEADER_LEN, MAX_STREAM_BODY};

/// Room behind the streams for the messages of one turn: credit, reached limits, and exit status.
pub(super) const MESSAGES: usize = 96;

/// Size of the server's buffer: a full pipe in one frame, a header for the other stream, and the
/// messages.
pub(super) const SCRATCH: usize = MAX_STREAM_BODY + 2 * HEADER_LEN + MESSAGES;

impl Server {
    /// Moves data of one process, once.
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
            // Epoll reports when there is room, and then this process is served again.
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
                    // Stays until its last byte is sent, because a transport reset may still come
                    // before that.
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

    /// Sends waiting bytes when the socket accepts them again, and serves the process.
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

/// Reads the outputs into frames at the start of `buffer`. Returns the length of all frames.
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

/// Reads one frame of `output` into `frame`, with its header. Returns 0 if there was nothing.
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
    // This cannot fail, because the length is below the maximum of a stream frame.
    let Ok(bytes) = WIRE.header(output.kind(), len) else { return 0 };
    *header = bytes;
    HEADER_LEN + len
}

/// Writes the messages about `process` into `buffer`. Returns their length.
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

/// Writes a short message into `buffer`, which has room for [`MESSAGES`]. Returns its length.
pub(super) fn put_message(message: &AgentMessage, buffer: &mut [u8]) -> usize {
    let mut frame = Vec::new();
    // The length is far below the maximum, which is the only possible error.
    let _ = WIRE.append_message(&mut frame, message, MAX_AGENT_MESSAGE);
    let len = frame.len().min(buffer.len());
    buffer[..len].copy_from_slice(&frame[..len]);
    len
}
