//! Something to see while a command waits: a spinner on stderr, only on a terminal, only when it takes a while.

use indicatif::{ProgressBar, ProgressStyle};
use std::{future::Future, io::IsTerminal, time::Duration};
use tokio::time::{Instant, sleep};

const SHOWN_AFTER: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(100);

/// Waits for `work`, showing `message` and the time that passed.
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

struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
