//! What becomes of the sandboxes of a benchmark that is interrupted. They are nobody's children and would run on, beside
//! whatever is measured next.

use crate::processes;
use std::{
    fs,
    path::{Path, PathBuf},
    process::exit,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

/// Temporary directories of this process in which sandboxes may be.
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

/// From now on SIGINT, SIGTERM and SIGHUP end every sandbox of this process, and then the process; but for those that it was
/// started to ignore, as by nohup(1).
///
/// # Panics
/// When the host has no thread for that.
pub fn takes_sandboxes_along() {
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
    // Held to the end: nobody makes another one meanwhile.
    let places = places();
    for place in places.iter() {
        // Twice: a command that was just making a sandbox may have come between look and kill.
        processes::kill_all_of(place);
        processes::kill_all_of(place);
        let _ = fs::remove_dir_all(place);
    }
    exit(128 + number.as_raw_value());
}

/// A bit for each, the first for signal 1 (proc_pid_status(5)).
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
