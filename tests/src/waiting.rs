//! Waiting for what another process does.

use crate::cli;
use std::time::{Duration, Instant};

/// Asks again and again until there is an answer, for at most `patience` (times [`cli::patience`]).
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
