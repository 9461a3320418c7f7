//! Requests about files: each is handed to a separate process, with its connection. The server only reaps that process.

use crate::files::{self, Handover};
use crate::server::answer::{Outcome, bad_request, internal};
use crate::server::state::{Ending, Role, Server};
use crate::slab::Key;
use rustix::event::epoll;
use sandboxvm_protocol::agent::files::{FileOperation, FileRequest};
use sandboxvm_protocol::agent::{Failure, FailureKind};
use sandboxvm_protocol::frame::FrameDecoder;
use std::os::fd::AsFd;

/// Maximum number of processes for files at the same time.
const MAX_FILE_WORKERS: usize = 64;

impl Server {
    /// Notes the request. The connection is handed over after the frames that were received with
    /// it.
    pub(super) fn work_on_files(&mut self, key: Key, request: FileRequest) -> Outcome {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        if connection.process.is_some() {
            return Err(bad_request("this connection has a process; open another for files"));
        }
        if self.ending != Ending::No {
            return Err(internal("the sandbox is shutting down".to_owned()));
        }
        let mounts = matches!(
            request.operation,
            FileOperation::MountWorkspace(_) | FileOperation::Mount(_) | FileOperation::MountShare(_)
        );
        if self.role == Role::Service && mounts {
            return Err(bad_request("this agent is not PID 1 of a sandbox: it mounts nothing"));
        }
        if self.file_workers.len() >= MAX_FILE_WORKERS {
            let message = format!("{MAX_FILE_WORKERS} requests about files are under way; wait for one to end");
            return Err(Failure { kind: FailureKind::Resources, message });
        }
        self.file_request = Some(Box::new(request));
        Ok(())
    }

    /// Hands a connection over to a process that serves `request`. Frames behind the request are in
    /// `decoder`.
    pub(super) fn hand_over(&mut self, key: Key, decoder: FrameDecoder, request: FileRequest) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let upper = self.upper.as_ref().map(AsFd::as_fd);
        let init = self.spawner.init();
        let handover =
            Handover { socket: connection.as_fd(), decoder, unsent: connection.unsent().to_vec(), upper, init };
        match files::start(handover, request) {
            Ok(worker) => {
                self.file_workers.push(worker);
                self.is_childless = false;
                self.pid_is_reused(worker.as_raw_pid().unsigned_abs());
                if let Some(connection) = self.connections.remove(key) {
                    // Closing this descriptor does not stop the events, as the socket stays open
                    // elsewhere. It may not be watched yet.
                    let _ = epoll::delete(&self.epoll, &connection);
                }
            }
            Err(errno) => {
                let message = format!("cannot start a process for files: {errno}; the sandbox is out of memory");
                self.fail(key, Failure { kind: FailureKind::Resources, message });
            }
        }
    }
}
