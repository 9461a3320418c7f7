//! `stats`: a VMM's counters.

use crate::{environment, failure::Failure, runtime, stdio, table};
use clap::Args;
use sandboxvm_protocol::vmm::VmStats;

/// Show the counters of a running sandbox's VMM
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Name or ID of the sandbox
    sandbox: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(crate) fn run(self) -> Result<u8, Failure> {
        let sandbox = environment::manager()?.find(&self.sandbox)?;
        let stats = runtime::block_on(async { Ok(sandbox.stats().await?) })?;
        let text = if self.json { format!("{}\n", serde_json::to_string_pretty(&stats)?) } else { tables(&stats) };
        stdio::print(&text)?;
        Ok(0)
    }
}

fn tables(stats: &VmStats) -> String {
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
    format!("{}\n{}", table::render(["MACHINE", ""], machine), table::render(heading, vcpus))
}
