//! Ends the sandboxes of a benchmark that is interrupted. They are not children of the benchmark,
//! so they would keep running and disturb the next measurement.

use crate::host::processes;
use std::{
    fs,
    path::{Path, PathBuf},
    process::exit,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

/// Temporary directories of this process that may contain sandboxes.
static PLACES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn places() -> MutexGuard<'static, Vec<PathBuf>> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn begin(place: &Path) {
    places().push(place.to_owned());
}

pub(crate) fn end(place: &Path) {
    places().retain(|other| other != place);
}

/// From now on SIGINT, SIGTERM and SIGHUP end every sandbox of this process, and then the process.
/// Signals that the process was started to ignore, as by nohup(1), stay ignored.
///
/// # Panics
/// Panics if no thread can be started.
pub fn end_sandboxes_on_signals() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let watch = move || runtime.block_on(wait_and_end());
    let _ = thread::Builder::new().name("interruption".into()).spawn(watch).expect("a thread");
}

async fn wait_and_end() {
    let ignored = ignored_signals();
    let received = async |kind: SignalKind| {
        if ignored >> (kind.as_raw_value() - 1) & 1 == 1 {
            std::future::pending::<()>().await;
        }
        let _ = signal(kind).expect("the signal can be caught").recv().await;
        kind
    };
    let number = tokio::select! {
        kind = received(SignalKind::interrupt()) => kind,
        kind = received(SignalKind::terminate()) => kind,
        kind = received(SignalKind::hangup()) => kind,
    };
    // The lock is held until the process ends, so that no further sandbox is created.
    let places = places();
    for place in places.iter() {
        // Twice, as a command may have created a sandbox between the search and the kill.
        processes::kill_all_of(place);
        processes::kill_all_of(place);
        let _ = fs::remove_dir_all(place);
    }
    exit(128 + number.as_raw_value());
}

/// Returns the ignored signals, one bit each, the lowest for signal 1 (proc_pid_status(5)).
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
