//! `audit`: verifies audit logs.

use crate::{
    commands::host::events,
    environment,
    failure::Failure,
    output::{json, table},
    stdio,
};
use clap::{Args, Subcommand};
use serde::Serialize;

/// Verify audit logs
#[derive(Debug, Args)]
pub(crate) struct Audit {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    Verify(Verify),
}

/// Check that no line of an audit log was changed, removed or added since it was written
#[derive(Debug, Args)]
#[command(
    after_help = "Each line of a log has the hash of the line before it. A process that can write to the log can replace all \
                  of it with another consistent one; to detect that, keep the printed hash of the last line elsewhere.\n\n\
                  Exit code: 0 if every log is intact, otherwise 125."
)]
struct Verify {
    /// Names or IDs of sandboxes, or full IDs of removed ones [default: all]
    sandboxes: Vec<String>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The result for one log.
#[derive(Debug, Serialize)]
struct Verdict {
    sandbox: String,
    is_whole: bool,
    /// Number of lines of an intact log.
    lines: Option<u64>,
    /// Hash of the last line of an intact log.
    head: Option<String>,
    /// What is wrong with a damaged log.
    problem: Option<String>,
}

impl Audit {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let AuditCommand::Verify(Verify { sandboxes, json }) = self.command;
        let manager = environment::manager()?;
        let trails = if sandboxes.is_empty() {
            manager.trails()?
        } else {
            sandboxes.iter().map(|reference| events::trail(&manager, reference)).collect::<Result<_, _>>()?
        };
        let verdicts: Vec<Verdict> = trails
            .iter()
            .map(|trail| {
                let sandbox = trail.sandbox().to_string();
                match trail.verify() {
                    Ok(verified) => Verdict {
                        sandbox,
                        is_whole: true,
                        lines: Some(verified.lines),
                        head: Some(verified.head),
                        problem: None,
                    },
                    Err(error) => {
                        Verdict { sandbox, is_whole: false, lines: None, head: None, problem: Some(error.to_string()) }
                    }
                }
            })
            .collect();
        if json {
            stdio::print(&json::pretty(&verdicts)?)?;
        } else {
            let rows = verdicts.iter().filter(|verdict| verdict.is_whole).map(|verdict| {
                let lines = verdict.lines.unwrap_or_default().to_string();
                [verdict.sandbox.clone(), lines, verdict.head.clone().unwrap_or_default()]
            });
            stdio::print(&table::render(["ID", "LINES", "HASH OF THE LAST"], rows))?;
        }
        let problems: Vec<&str> = verdicts.iter().filter_map(|verdict| verdict.problem.as_deref()).collect();
        if problems.is_empty() { Ok(0) } else { Err(Failure::new(problems.join("\nsandboxvm: "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;

    #[test]
    fn json_is_pinned() {
        let whole = Verdict {
            sandbox: "aaaaaaaa".into(),
            is_whole: true,
            lines: Some(7),
            head: Some("0f".repeat(32)),
            problem: None,
        };
        let problem = Some("the audit log /h/audit/bbbbbbbb.jsonl is damaged: line 3 was changed".into());
        let damaged = Verdict { sandbox: "bbbbbbbb".into(), is_whole: false, lines: None, head: None, problem };
        assert_golden("audit-verify.json", &json::pretty(&[whole, damaged]).unwrap());
    }
}
