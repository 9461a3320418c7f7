//! `doctor --self-test`: uses and attacks sandboxes in a separate home, and reports what holds on this host. It decides
//! nothing about other sandboxes, and leaves nothing behind.

mod attacks;
mod rig;
mod uses;

use crate::{failure::Failure, output::progress};
use rig::Rig;
use sandboxvm_images::bundle::Bundle;
use serde::Serialize;
use std::{fmt::Write, time::Instant};

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// All of it is as it should be.
    pub(crate) passed: bool,
    trials: Vec<Trial>,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub(super) struct Trial {
    name: &'static str,
    passed: bool,
    /// What was measured, or what is wrong.
    detail: String,
    milliseconds: u64,
}

/// Runs all trials, each also after another failed.
pub(crate) async fn run(bundle: &Bundle) -> Result<Findings, Failure> {
    let mut rig = Rig::new(bundle)?;
    let mut trials = Vec::new();
    macro_rules! trial {
        ($name:literal, $trial:expr) => {{
            let begin = Instant::now();
            let outcome = progress::during($name, $trial).await;
            let milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            let (passed, detail) = match outcome {
                Ok(detail) => (true, detail),
                Err(fault) => (false, fault.to_string()),
            };
            trials.push(Trial { name: $name, passed, detail, milliseconds });
        }};
    }
    trial!("boot", uses::boot(&rig));
    trial!("start from the ready snapshot", uses::ready(&rig));
    trial!("two vCPUs", uses::two_vcpus(&rig));
    trial!("snapshot and restore", uses::snapshot(&rig));
    trial!("fork", uses::fork(&rig));
    trial!("reset", uses::reset(&rig));
    trial!("pause and resume", uses::pause(&rig));
    trial!("files of the host", attacks::files(&rig));
    trial!("network of the host", attacks::network(&rig));
    trial!("fork bomb", attacks::fork_bomb(&rig));
    trial!("memory exhaustion", attacks::memory(&rig));
    trial!("full disk", attacks::disk(&rig));
    trial!("power off by the guest", attacks::power_off(&rig));
    trial!("nothing left behind", rig.close());
    let passed = trials.iter().all(|trial| trial.passed);
    Ok(Findings { passed, trials })
}

impl Findings {
    /// Formats them as a part of the page that `doctor` prints.
    pub(crate) fn shown(&self) -> String {
        let mut text = String::new();
        for Trial { name, passed, detail, milliseconds } in &self.trials {
            let mark = if *passed { "ok" } else { "FAILED" };
            // Writing to a String does not fail.
            let _ = writeln!(text, "{mark:<8} {name:<30} {milliseconds:>7} ms  {detail}");
        }
        text.push_str(if self.passed {
            "sandboxes work and hold on this host\n"
        } else {
            "sandboxes do not work as they should on this host: please report this page\n"
        });
        text
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn example() -> Findings {
        let trial = |name, passed, detail: &str| Trial { name, passed, detail: detail.into(), milliseconds: 1200 };
        let trials =
            vec![trial("fork", true, "a copy in 12 ms"), trial("a full disk", false, "it did not become full")];
        Findings { passed: false, trials }
    }

    #[test]
    fn failed_trials_are_marked_and_decide_the_last_line() {
        let trial = |passed| Trial { name: "boot", passed, detail: "41 ms".into(), milliseconds: 1200 };
        let text = Findings { passed: false, trials: vec![trial(true), trial(false)] }.shown();
        assert!(text.starts_with("ok       boot                              1200 ms  41 ms\nFAILED   boot"), "{text}");
        assert!(text.ends_with("please report this page\n"));
        assert!(Findings { passed: true, trials: vec![trial(true)] }.shown().ends_with("hold on this host\n"));
    }
}
