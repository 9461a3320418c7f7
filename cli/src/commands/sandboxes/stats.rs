//! `stats`: shows the resource usage of sandboxes, or the counters of the VMM of one.

use crate::{
    environment,
    failure::Failure,
    output::{json, table},
    process_io::signals::Signals,
    runtime, stdio,
};
use clap::Args;
use sandboxvm_manager::{Manager, SandboxId, SandboxRecord, TrafficCounters, Usage, VmStats};
use serde::Serialize;
use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

/// Time over which processor usage is measured.
const WINDOW: Duration = Duration::from_secs(1);
/// Moves the cursor to the top left corner and clears the screen below (ECMA-48 CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Show resource usage of running sandboxes, or the counters of one
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Name or ID of a sandbox whose VMM counters to show [default: a line of usage for each running sandbox]
    sandbox: Option<String>,
    /// Show usage once a second until interrupted
    #[arg(short, long)]
    watch: bool,
    /// Print JSON; with --watch, one line each second
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Usage of one sandbox.
#[derive(Debug, Serialize)]
struct Row {
    id: SandboxId,
    name: Option<String>,
    state: &'static str,
    /// Share of one processor in percent, above 100 for one with several vCPUs.
    cpu_percent: f64,
    #[serde(flatten)]
    usage: Usage,
    /// The memory that it was created with.
    memory_limit_bytes: u64,
}

/// Counters of one sandbox.
#[derive(Debug, Serialize)]
struct OfOne {
    #[serde(flatten)]
    vmm: VmStats,
    /// What passed its network, if it has one that works.
    network: Option<TrafficCounters>,
}

impl Stats {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let manager = environment::manager()?;
        match &self.sandbox {
            Some(reference) if !self.watch => {
                let sandbox = manager.find(reference)?;
                let stats = runtime::block_on(async {
                    let (vmm, report) = (sandbox.stats().await?, sandbox.network_report().await?);
                    Ok(OfOne { vmm, network: report.and_then(|report| report.counters) })
                })?;
                let text = if self.json { json::pretty(&stats)? } else { tables(&stats) };
                stdio::print(&text)?;
                Ok(0)
            }
            _ => runtime::block_on(self.usage(&manager)),
        }
    }

    async fn usage(&self, manager: &Manager) -> Result<u8, Failure> {
        let mut signals = Signals::catch()?;
        let only = self.sandbox.as_deref().map(|reference| manager.find(reference)).transpose()?;
        let only = only.map(|sandbox| sandbox.id().clone());
        let mut watch = Watch::default();
        watch.rows(manager, only.as_ref())?;
        let hung_up = stdio::hung_up();
        tokio::pin!(hung_up);
        loop {
            tokio::select! {
                () = &mut hung_up => return Err(stdio::reader_left()),
                () = tokio::time::sleep(WINDOW) => {}
                _ = signals.next() => return Ok(if self.watch { 0 } else { signals.exit_code() }),
            }
            let rows = watch.rows(manager, only.as_ref())?;
            stdio::print(&self.show(&rows)?)?;
            if !self.watch || (only.is_some() && rows.is_empty()) {
                return Ok(0);
            }
        }
    }

    fn show(&self, rows: &[Row]) -> Result<String, Failure> {
        if self.json {
            return if self.watch { json::line(&rows) } else { json::pretty(&rows) };
        }
        let heading = ["ID", "NAME", "STATE", "CPU", "MEMORY", "ITS OWN", "LIMIT"];
        let text = table::render(heading, rows.iter().map(Row::cells));
        Ok(if self.watch && io::stdout().is_terminal() { format!("{CLEAR}{text}") } else { text })
    }
}

impl Row {
    fn cells(&self) -> [String; 7] {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        [
            self.id.to_string(),
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            self.state.to_owned(),
            format!("{:.1} %", self.cpu_percent),
            mib(self.usage.resident_bytes),
            mib(self.usage.private_bytes),
            mib(self.memory_limit_bytes),
        ]
    }
}

/// Processor times at the last measurement.
#[derive(Debug, Default)]
struct Watch {
    before: HashMap<SandboxId, (Instant, Duration)>,
}

impl Watch {
    /// Measures all running sandboxes.
    fn rows(&mut self, manager: &Manager, only: Option<&SandboxId>) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        let mut seen = HashMap::new();
        for summary in manager.list()? {
            let SandboxRecord { id, name, memory_bytes, .. } = summary.record;
            if only.is_some_and(|only| *only != id) {
                continue;
            }
            // There is no usage of a sandbox that is not running or that was removed.
            let Some(usage) = manager.find(id.as_str()).ok().and_then(|sandbox| sandbox.usage().ok().flatten()) else {
                continue;
            };
            let now = Instant::now();
            let (since, before) = self.before.get(&id).copied().unwrap_or((now, usage.cpu));
            let elapsed = now.duration_since(since).as_secs_f64();
            let took = usage.cpu.saturating_sub(before).as_secs_f64();
            seen.insert(id.clone(), (now, usage.cpu));
            rows.push(Row {
                name: name.map(|name| name.to_string()),
                state: summary.state.word(),
                cpu_percent: if elapsed > 0.0 { 100.0 * took / elapsed } else { 0.0 },
                usage,
                memory_limit_bytes: memory_bytes.bytes(),
                id,
            });
        }
        self.before = seen;
        Ok(rows)
    }
}

fn tables(OfOne { vmm: stats, network }: &OfOne) -> String {
    let milliseconds = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), |ns| format!("{:.1} ms", ns as f64 / 1e6));
    let count = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let boot = stats.boot.as_ref();
    let machine = [
        ["phase".to_owned(), format!("{:?}", stats.phase).to_lowercase()],
        ["host mode".to_owned(), stats.host_mode.to_string()],
        ["start to first instruction".to_owned(), milliseconds(stats.first_run_ns)],
        ["start to agent ready".to_owned(), milliseconds(boot.map(|mark| mark.elapsed_ns))],
        ["instructions emulated by then".to_owned(), count(boot.map(|mark| mark.insn_emulation))],
        ["exits by then".to_owned(), count(boot.map(|mark| mark.exits))],
        ["INT3 emulated by the VMM".to_owned(), stats.int3_emulated.to_string()],
        ["FWAIT skipped by the VMM".to_owned(), stats.fwait_skipped.to_string()],
    ];
    let counted = |name: &str, count: u64| [name.to_owned(), count.to_string()];
    let network = network.iter().flat_map(|counters| {
        [
            counted("connections allowed", counters.flows),
            counted("connections open", counters.open.into()),
            counted("connections and names refused", counters.refused),
            counted("names resolved", counters.queries),
            counted("bytes sent", counters.bytes_out),
            counted("bytes received", counters.bytes_in),
        ]
    });
    let vcpus = stats.vcpus.iter().enumerate().map(|(number, vcpu)| {
        [
            number.to_string(),
            vcpu.exits.to_string(),
            vcpu.insn_emulation.to_string(),
            vcpu.irq_injections.to_string(),
            vcpu.port_exits.to_string(),
            vcpu.mmio_exits.to_string(),
        ]
    });
    let heading = ["VCPU", "EXITS", "INSTRUCTIONS EMULATED", "INTERRUPTS", "PORT EXITS", "MMIO EXITS"];
    let mut text = format!("{}\n{}", table::render(["MACHINE", ""], machine), table::render(heading, vcpus));
    let mut network = network.peekable();
    if network.peek().is_some() {
        text.push('\n');
        text.push_str(&table::render(["NETWORK", ""], network));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json::tests::assert_golden;
    use sandboxvm_manager::{BootMark, HostMode, Phase, VcpuStats};

    fn example(id: &str, name: Option<&str>) -> Row {
        Row {
            id: id.to_owned().try_into().unwrap(),
            name: name.map(str::to_owned),
            state: "running",
            cpu_percent: 12.5,
            usage: Usage { cpu: Duration::from_millis(1500), resident_bytes: 48 << 20, private_bytes: 3 << 20 },
            memory_limit_bytes: 256 << 20,
        }
    }

    #[test]
    fn json_is_pinned() {
        let rows = [example("aaaaaaaa", Some("demo")), example("bbbbbbbb", None)];
        let show = |watch| Stats { sandbox: None, watch, json: true }.show(&rows).unwrap();
        assert_golden("stats.json", &show(false));
        let line = show(true);
        assert_eq!(line.matches('\n').count(), 1, "with --watch, a line each time");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&line), read(&show(false)));
    }

    #[test]
    fn json_of_one_sandbox_is_pinned() {
        let vcpu = VcpuStats { exits: 1000, insn_emulation: 2000, irq_injections: 30, port_exits: 40, mmio_exits: 500 };
        let stats = VmStats {
            phase: Phase::Ready,
            host_mode: HostMode::Pvm,
            vcpus: vec![vcpu],
            first_run_ns: Some(830_000),
            boot: Some(BootMark { elapsed_ns: 9_000_000_000, insn_emulation: 15_000_000, exits: 60_000 }),
            int3_emulated: 7,
            fwait_skipped: 1,
        };
        let new = VmStats { phase: Phase::Created, vcpus: vec![], first_run_ns: None, boot: None, ..stats.clone() };
        // Of the one that was asked for, and of another that has only begun.
        let counters = TrafficCounters { flows: 12, refused: 3, open: 1, queries: 9, bytes_out: 4096, bytes_in: 8192 };
        let stats = OfOne { vmm: stats, network: Some(counters) };
        assert!(tables(&stats).contains("connections allowed            12\n"), "{}", tables(&stats));
        assert_golden("stats-of-one.json", &json::pretty(&stats).unwrap());
        assert_golden("stats-of-new.json", &json::pretty(&OfOne { vmm: new, network: None }).unwrap());
    }
}
