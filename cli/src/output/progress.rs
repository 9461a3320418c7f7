//! Progress of a command that waits: a spinner on stderr, only on a terminal and only if the wait is noticeable.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    future::Future,
    io::IsTerminal,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};

const SHOWN_AFTER: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(100);

/// Waits for `work` and shows `message` and the elapsed time.
pub(crate) async fn during<T>(message: &'static str, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    let begin = Instant::now();
    tokio::pin!(work);
    tokio::select! {
        result = &mut work => return result,
        () = sleep(SHOWN_AFTER) => {}
    }
    let spinner = ProgressBar::new_spinner().with_elapsed(begin.elapsed()).with_message(message);
    if let Ok(style) = ProgressStyle::with_template("sandboxvm: {msg} {elapsed} {spinner}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(TICK);
    let _cleared = ClearOnDrop(spinner);
    work.await
}

/// Waits for `work` and shows `message` and the number of bytes in `moved`.
pub(crate) async fn transfer<T>(message: &'static str, moved: &AtomicU64, work: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return work.await;
    }
    tokio::pin!(work);
    let spinner = ProgressBar::new_spinner().with_message(message);
    let template = "sandboxvm: {msg} {bytes} {bytes_per_sec} {elapsed} {spinner}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        spinner.set_style(style);
    }
    let mut is_shown = None;
    let begin = Instant::now();
    loop {
        tokio::select! {
            result = &mut work => return result,
            () = sleep(TICK) => {
                if begin.elapsed() >= SHOWN_AFTER {
                    is_shown.get_or_insert_with(|| ClearOnDrop(spinner.clone()));
                    spinner.set_position(moved.load(Ordering::Relaxed));
                    spinner.tick();
                }
            }
        }
    }
}

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
