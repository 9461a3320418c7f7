//! Holds a share while the host copies the memory of the machine: what programs wrote to maps of files is sent,
//! no request is under way, and the record of what the kernel refers to is here.

use super::listener::{Endpoints, accept, send_all};
use super::record::{self, Record};
use super::state::Shared;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open, syncfs};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use sandboxvm_protocol::agent::share::HELD;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Delay before requests continue after the host closed the connection without releasing the share. In a machine whose
/// memory is a copy, all connections have ended.
const LEFT: Duration = Duration::from_millis(200);
/// Interval at which this thread checks whether the relay has noticed the end of the share's connection.
const POLL: Duration = Duration::from_millis(10);
/// Delay after a connection could not be accepted, as for lack of memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Holds the share as often as the host asks for it.
pub(super) fn hold_on_request(endpoints: &Endpoints, shared: &Shared) {
    loop {
        match accept(&endpoints.holds) {
            Ok(host) => hold(&host, endpoints, shared),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn hold(host: &OwnedFd, endpoints: &Endpoints, shared: &Shared) {
    // Without this, a copy would write the same data again later, over the newer content of the file. Errors are
    // ignored: a file that cannot be reached any more is not written by a copy either.
    if let Ok(mount) = open(endpoints.path.as_slice(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = syncfs(mount);
    }
    shared.hold();
    // Without a process of the host there is nothing to record, and what a copy refers to is stale.
    if let Some(connection) = shared.when_drained()
        && let Ok(record) = collect(&connection, shared)
    {
        shared.keep(record);
    }
    // An error is seen by the next call.
    let _ = send_all(host, &[HELD]);
    let mut word = [0];
    loop {
        match recv(host, &mut word[..], RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Ok((1.., _)) => break,
            Ok(_) | Err(_) => {
                std::thread::sleep(LEFT);
                // A request that is sent on a connection that has ended would fail.
                while shared.current().is_some_and(|connection| has_ended(&connection)) {
                    std::thread::sleep(POLL);
                }
                break;
            }
        }
    }
    shared.release();
}

/// Returns true if a connection was reset or closed by the host.
fn has_ended(connection: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(connection, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

/// Asks the process of the host for the record.
fn collect(connection: &OwnedFd, shared: &Shared) -> Result<Record, Errno> {
    let mut record = Record::default();
    let mut cursor = Some(record::Cursor::default());
    while let Some(at) = cursor {
        send_all(connection, &record::save(&at))?;
        cursor = record.add(&shared.own_answer().ok_or(Errno::IO)?)?;
    }
    Ok(record)
}
