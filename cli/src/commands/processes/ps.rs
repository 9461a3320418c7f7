//! `ps`: lists the processes that run and exec started in a sandbox.

use crate::{
    failure::Failure,
    options::supervision,
    output::{age::age, json, table},
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{ProcessSummary, printable};
use std::time::Duration;

/// List the processes of run and exec, running or recently ended
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Print JSON
    #[arg(long, help_heading = "Output", conflicts_with = "quiet")]
    json: bool,
    /// Print only the IDs of running processes
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

impl Ps {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = supervision::find(&self.sandbox)?;
        let processes = runtime::block_on(async { Ok(sandbox.processes().await?) })?;
        let text = if self.json {
            json::pretty(&processes)?
        } else if self.quiet {
            let running = processes.iter().filter(|process| process.exit_code.is_none());
            running.map(|process| format!("{}\n", process.pid)).collect()
        } else {
            table::render(["PID", "STATE", "STARTED", "COMMAND"], processes.iter().map(row))
        };
        stdio::print(&text)?;
        Ok(0)
    }
}

fn row(process: &ProcessSummary) -> [String; 4] {
    [
        process.pid.to_string(),
        state(process),
        age(Duration::from_millis(process.age_ms)),
        command(&process.argv, process.argv_is_cut),
    ]
}

fn state(process: &ProcessSummary) -> String {
    match (process.exit_code, process.signal) {
        (None, _) => process.state.to_owned(),
        (Some(_), Some(signal)) => format!("killed by signal {signal}"),
        (Some(_), None) if process.timed_out => "timed out".to_owned(),
        (Some(code), None) => format!("exited with {code}"),
    }
}

/// Formats a command on one line, escaped and shortened.
fn command(argv: &[String], is_cut: bool) -> String {
    let mut line = printable(&argv.join(" ")).replace('\n', "\\n").replace('\t', "\\t");
    let is_long = line.chars().count() > 80;
    if is_long {
        line = line.chars().take(77).collect();
    }
    if is_long || is_cut {
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;

    fn example() -> ProcessSummary {
        ProcessSummary {
            pid: 301,
            argv: vec!["sh".into(), "-c".into(), "a\u{9b}1m\n".into()],
            argv_is_cut: false,
            state: "ended",
            exit_code: Some(137),
            signal: Some(9),
            timed_out: false,
            ended_ago_ms: Some(200),
            age_ms: 90_000,
            stdin_is_open: false,
            has_terminal: false,
            connections: 0,
            kept_bytes: 70_000,
            dropped_bytes: 300,
        }
    }

    #[test]
    fn json_is_pinned_and_escaped() {
        let code = ProcessSummary { pid: 302, exit_code: Some(124), signal: None, timed_out: true, ..example() };
        let running = ProcessSummary {
            pid: 303,
            argv_is_cut: true,
            state: "running",
            exit_code: None,
            signal: None,
            ended_ago_ms: None,
            stdin_is_open: true,
            has_terminal: true,
            connections: 1,
            ..example()
        };
        let text = json::pretty(&[example(), code, running]).unwrap();
        assert!(!text.contains('\u{9b}'));
        assert_golden("ps.json", &text);
    }

    #[test]
    fn rows_take_one_line_and_show_how_a_process_ended() {
        let row_of = |process: &ProcessSummary| row(process).join("|");
        let ended = example();
        assert_eq!(row_of(&ended), "301|killed by signal 9|1 minute ago|sh -c a\\u{9b}1m\\n");
        let code = ProcessSummary { signal: None, exit_code: Some(3), argv_is_cut: true, ..example() };
        assert_eq!(row_of(&code), "301|exited with 3|1 minute ago|sh -c a\\u{9b}1m\\n...");
        assert_eq!(state(&ProcessSummary { timed_out: true, ..code.clone() }), "timed out");
        let running = ProcessSummary { exit_code: None, state: "running", argv: vec!["x".repeat(200)], ..code };
        assert!(row_of(&running).ends_with("xxx...") && row_of(&running).contains("|running|"));
        assert_eq!(command(&["x".repeat(200)], false).len(), 80);
    }
}
