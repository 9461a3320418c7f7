//! `ls`: lists sandboxes and their states.

use crate::{
    environment,
    failure::Failure,
    options::supervision,
    output::{
        age::{age, in_one_unit},
        json, table,
    },
    stdio,
};
use clap::Args;
use sandboxvm_manager::{PublishedPort, SandboxSummary, State, SupervisionStatus, Unreadable};
use std::time::{Duration, SystemTime};

/// List sandboxes and their states
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Print JSON
    #[arg(long, help_heading = "Output", conflicts_with = "quiet")]
    json: bool,
    /// Print only IDs
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

impl Ls {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        manager.sweep()?;
        let (sandboxes, unreadable) = manager.list_with_unreadable()?;
        let text = if self.json {
            json::pretty(&sandboxes)?
        } else if self.quiet {
            sandboxes.iter().map(|sandbox| format!("{}\n", sandbox.record.id)).collect()
        } else {
            let now = SystemTime::now();
            let heading = ["ID", "NAME", "STATE", "MEMORY", "CPUS", "CREATED", "ENDS", "PORTS"];
            table::render(heading, sandboxes.iter().map(|sandbox| row(sandbox, now)))
        };
        stdio::print(&text)?;
        for Unreadable { id, error } in unreadable {
            stdio::notice(format_args!("warning: cannot list sandbox {id}: {error}"));
        }
        if !self.json && !self.quiet {
            for SandboxSummary { record, state, supervision } in &sandboxes {
                let label = record.name.as_ref().map_or_else(|| record.id.to_string(), ToString::to_string);
                supervision::warn_of_unkept(&label, state, supervision.as_ref());
            }
        }
        Ok(0)
    }
}

fn row(sandbox: &SandboxSummary, now: SystemTime) -> [String; 8] {
    let record = &sandbox.record;
    // The rules of a sandbox that has ended have no effect.
    let supervision = sandbox.supervision.as_ref().filter(|_| sandbox.state.is_live());
    let state = match &sandbox.state {
        State::Exited { reason } => format!("exited: {reason}"),
        state => {
            let kept = supervision.map_or("", |supervision| match supervision {
                SupervisionStatus { supervised: false, .. } => " (unsupervised)",
                SupervisionStatus { idle_paused: true, .. } if *state == State::Paused => " (idle)",
                _ => "",
            });
            format!("{}{}", state.word(), if state.is_live() { kept } else { "" })
        }
    };
    let ends = supervision.and_then(|supervision| supervision.ttl_left_ms);
    let ports = supervision.map(|supervision| supervision.ports.iter().map(port).collect::<Vec<_>>().join(", "));
    [
        record.id.to_string(),
        record.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        state,
        format!("{} MiB", record.memory_bytes.mib()),
        u32::from(record.vcpus).to_string(),
        age(now.duration_since(record.created_at).unwrap_or_default()),
        ends.map_or_else(|| "-".to_owned(), |left| format!("in {}", in_one_unit(Duration::from_millis(left)))),
        ports.filter(|ports| !ports.is_empty()).unwrap_or_else(|| "-".to_owned()),
    ]
}

fn port(port: &PublishedPort) -> String {
    format!("{}->{}", port.host, port.guest_port)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::output::json::tests::{assert_golden, example_record, plain_record};
    use sandboxvm_manager::{AtEnd, ExitReason, IdleRule, Publish, TimeToLive, WhenIdle};

    pub(crate) fn example_supervision() -> SupervisionStatus {
        let port = |text: &str, error: Option<&str>| {
            let Publish { guest, host } = text.parse().unwrap();
            PublishedPort { guest_port: guest, host, error: error.map(str::to_owned) }
        };
        SupervisionStatus {
            supervised: true,
            idle_paused: false,
            ttl: Some(TimeToLive { after: Duration::from_secs(3600), then: AtEnd::Remove }),
            ttl_left_ms: Some(3_599_000),
            idle: Some(IdleRule { after: Duration::from_secs(300), then: WhenIdle::Pause }),
            ports: vec![port("127.0.0.1:8080:80", None), port("/run/x.sock:443", Some("Address in use (os error 98)"))],
            network: false,
            shares: false,
        }
    }

    fn examples() -> Vec<SandboxSummary> {
        let plain = |id: &str, state| SandboxSummary { record: plain_record(id), state, supervision: None };
        let kept = |id: &str, state, supervision| SandboxSummary {
            record: example_record(id),
            state,
            supervision: Some(supervision),
        };
        let emulation = ExitReason::InternalError { suberror: 1, rip: 0xffff_ffff_8100_0000, bytes: "cc".into() };
        let rests = SupervisionStatus { ttl: None, ttl_left_ms: None, idle_paused: true, ..example_supervision() };
        let alone = SupervisionStatus { idle: None, ports: vec![], supervised: false, ..example_supervision() };
        vec![
            plain("aaaaaaaa", State::Creating),
            kept("bbbbbbbb", State::Running, example_supervision()),
            kept("cccccccc", State::Paused, rests),
            kept("dddddddd", State::Running, alone),
            plain("eeeeeeee", State::Exited { reason: ExitReason::GuestShutdown }),
            plain("ffffffff", State::Exited { reason: emulation }),
            plain("gggggggg", State::Dead),
        ]
    }

    #[test]
    fn json_is_pinned() {
        assert_golden("ls.json", &json::pretty(&examples()).unwrap());
    }

    #[test]
    fn rows_show_rules_and_missing_supervisors() {
        let now = crate::output::json::tests::example_time() + Duration::from_secs(60);
        let cells: Vec<String> = examples().iter().map(|summary| row(summary, now)[2..].join("|")).collect();
        assert_eq!(
            cells,
            [
                "creating|256 MiB|1|1 minute ago|-|-",
                "running|256 MiB|1|1 minute ago|in 59 minutes|127.0.0.1:8080->80, /run/x.sock->443",
                "paused (idle)|256 MiB|1|1 minute ago|-|127.0.0.1:8080->80, /run/x.sock->443",
                "running (unsupervised)|256 MiB|1|1 minute ago|in 59 minutes|-",
                "exited: the guest shut down|256 MiB|1|1 minute ago|-|-",
                "exited: KVM could not execute a guest instruction (suberror 1, rip 0xffffffff81000000, bytes cc)\
                 |256 MiB|1|1 minute ago|-|-",
                "dead|256 MiB|1|1 minute ago|-|-",
            ]
        );
    }
}
