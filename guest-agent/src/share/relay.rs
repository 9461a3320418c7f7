//! The two directions of a relay, a thread each. Both block.

use super::answers::{Answers, HEAD as ANSWER_HEAD};
use super::hold::hold_on_request;
use super::listener::{Endpoints, accept, send_all};
use super::others::end_after_the_others;
use super::record::OWN;
use super::state::Shared;
use rustix::io::{Errno, read, write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Size in bytes of a buffer: the longest message, a write or what a read returns, with its head.
const BUFFER: usize = (128 << 10) + 4096;
/// Size in bytes of the head of a request.
const REQUEST_HEAD: usize = 40;
/// Size in bytes of the stack of a thread.
const STACK: usize = 64 << 10;
/// Delay before connections are accepted again when the guest lacks memory for one.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a host may take to serve a share for the first time. Programs wait for that without a limit.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// Codes of requests (linux/fuse.h): the first one, and those without an answer.
const INIT: u32 = 26;
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;
const INTERRUPT: u32 = 36;

/// A relay that does not run yet.
#[derive(Debug)]
pub(crate) struct Relay(Arc<Endpoints>);

impl Relay {
    pub(crate) fn new(endpoints: Endpoints) -> Self {
        Self(Arc::new(endpoints))
    }

    /// Relays until the share is unmounted or the machine ends. The calling process must have one thread.
    pub(crate) fn run(self) {
        let _ = rustix::thread::set_name(c"sandboxvm-share");
        // Without its relay, every program that uses the share fails. An error leaves it like the others.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        let shared = Arc::new(Shared::default());
        let ends = std::thread::Builder::new().stack_size(STACK).spawn(end_after_the_others());
        let (endpoints, state) = (Arc::clone(&self.0), Arc::clone(&shared));
        let answers = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || while serve_connection(&endpoints, &state).is_ok() {});
        let (endpoints, state) = (Arc::clone(&self.0), Arc::clone(&shared));
        let gives_up = std::thread::Builder::new().stack_size(STACK).spawn(move || {
            std::thread::sleep(BEGINS_WITHIN);
            if state.begins() {
                fail(&endpoints.device, unique(&state.init()));
            }
        });
        let (endpoints, state) = (Arc::clone(&self.0), Arc::clone(&shared));
        let holds = std::thread::Builder::new().stack_size(STACK).spawn(move || hold_on_request(&endpoints, &state));
        if ends.is_ok() && answers.is_ok() && gives_up.is_ok() && holds.is_ok() {
            relay_requests(&self.0.device, &shared);
        }
        // The process ends, and the mount with it.
    }
}

/// Returns the 32-bit field at an offset of a message.
fn field(message: &[u8], at: usize) -> u32 {
    message.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn unique(message: &[u8]) -> u64 {
    message.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Passes requests of the kernel on until the share is unmounted.
fn relay_requests(device: &OwnedFd, shared: &Shared) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let request = match read(device, &mut buffer[..]) {
            Ok(count) if count >= REQUEST_HEAD => &buffer[..count],
            // ENOENT: the request was interrupted meanwhile.
            Ok(_) | Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(_) => return,
        };
        let code = field(request, 4);
        if code == INIT {
            shared.set_init(request.to_vec());
            continue;
        }
        let waits = !matches!(code, FORGET | BATCH_FORGET | INTERRUPT);
        let unique = waits.then(|| unique(request));
        let Some(connection) = shared.connection(unique) else {
            unique.into_iter().for_each(|unique| fail(device, unique));
            continue;
        };
        let sent = send_all(&connection, request);
        shared.is_sent();
        // The other thread may have failed it already.
        if let (Err(_), Some(unique)) = (sent, unique)
            && shared.is_answered(unique)
        {
            fail(device, unique);
        }
    }
}

/// Serves one connection, until it ends. Returns an error if there can be no other.
fn serve_connection(endpoints: &Endpoints, shared: &Shared) -> Result<(), Errno> {
    let connection = match accept(&endpoints.listener) {
        Ok(connection) => Arc::new(connection),
        Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
            std::thread::sleep(PAUSE);
            return Ok(());
        }
        Err(errno) => return Err(errno),
    };
    let _ = relay_answers(&connection, endpoints, shared);
    for unique in shared.end() {
        fail(&endpoints.device, unique);
    }
    Ok(())
}

/// Passes answers to the kernel until the connection ends.
fn relay_answers(connection: &Arc<OwnedFd>, endpoints: &Endpoints, shared: &Shared) -> Result<(), Errno> {
    let init = shared.init();
    let mut answers = Answers::of(connection, BUFFER);
    // Requests may follow on the connection as soon as the other thread sees it. INIT and the record come first.
    send_all(connection, &init)?;
    if let Some(record) = shared.take_record() {
        for request in record.requests() {
            send_all(connection, &request)?;
            loop {
                match answers.next()? {
                    // What a host cannot take is stale for the kernel.
                    Some(answer) if unique(answer) == OWN => break,
                    Some(other) => pass_on(&endpoints.device, shared, &init, other),
                    None => return Ok(()),
                }
            }
        }
    }
    shared.begin(Arc::clone(connection));
    while let Some(answer) = answers.next()? {
        if unique(answer) == OWN {
            let is_error = field(answer, 4) != 0;
            shared.set_own_answer(answer.get(ANSWER_HEAD..).filter(|_| !is_error).map(<[u8]>::to_vec));
        } else {
            pass_on(&endpoints.device, shared, &init, answer);
        }
    }
    Ok(())
}

/// Passes one answer to the kernel.
fn pass_on(device: &OwnedFd, shared: &Shared, init: &[u8], answer: &[u8]) {
    let number = unique(answer);
    if number == unique(init) {
        if shared.begins() {
            // If the kernel does not take it, no request can succeed.
            let _ = write(device, answer);
        }
        return;
    }
    // ENOENT: the request was interrupted meanwhile. Other errors are of an answer that is not valid.
    if shared.is_answered(number) && !matches!(write(device, answer), Ok(_) | Err(Errno::NOENT)) {
        fail(device, number);
    }
}

/// Answers a request with EIO.
fn fail(device: &OwnedFd, unique: u64) {
    let mut answer = [0; ANSWER_HEAD];
    answer[0] = 16;
    answer[4..8].copy_from_slice(&(-libc::EIO).to_le_bytes());
    answer[8..].copy_from_slice(&unique.to_le_bytes());
    // The request may have been interrupted meanwhile.
    let _ = write(device, &answer);
}
