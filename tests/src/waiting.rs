//! Waits until another process has done something.

use crate::cli;
use std::time::{Duration, Instant};

/// Calls `ask` repeatedly until it returns a value, for at most `patience` (times
/// [`cli::patience`]).
pub fn eventually<T>(patience: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience * cli::patience();
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() >= deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
