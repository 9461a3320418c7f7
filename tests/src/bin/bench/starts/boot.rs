//! `bench boot`: from the start of the VMM until the agent listens. Compare the instruction counts,
//! which do not depend on the load of the machine. They exist where KVM counts emulated
//! instructions (host mode `pvm`).

use crate::{
    rig::Runs,
    table::{self, Row},
};
use sandboxvm_manager::{HostMode, VmStats};
use sandboxvm_tests::{home::Home, host::memory};
use serde::Serialize;
use std::{collections::BTreeMap, fs, path::Path};

#[derive(Debug, clap::Args)]
#[command(mut_arg("runs", |runs| runs.default_value("5")))]
pub struct Arguments {
    #[command(flatten)]
    pub all: Runs,
    /// Guest memory in MiB
    #[arg(short, long, default_value_t = 256)]
    memory: u64,
    /// vCPUs
    #[arg(short, long, default_value_t = 1)]
    cpus: u8,
}

#[derive(Debug, Serialize)]
struct Report {
    runs: u16,
    memory_mib: u64,
    vcpus: u8,
    host_mode: HostMode,
    results: Vec<Row>,
    /// Size of each file in bytes.
    sizes: BTreeMap<&'static str, Option<u64>>,
}

/// Measurements of one boot, taken when the agent listens.
struct Boot {
    stats: VmStats,
    create_ms: f64,
    memory: memory::VmmMemory,
}

pub fn run(arguments: &Arguments) {
    let home = Home::with_kvm().expect("a benchmark without KVM measures nothing: unset SANDBOXVM_NO_KVM");
    let boots: Vec<Boot> = (1..=arguments.all.runs)
        .map(|run| {
            eprintln!("bench: boot {run} of {}", arguments.all.runs);
            boot(&home, arguments)
        })
        .collect();
    let report = Report {
        runs: arguments.all.runs,
        memory_mib: arguments.memory,
        vcpus: arguments.cpus,
        host_mode: boots[0].stats.host_mode,
        results: rows(&boots),
        sizes: sizes(&home),
    };
    if arguments.all.json {
        println!("{}", serde_json::to_string_pretty(&report).expect("a report is JSON"));
    } else {
        print(&report);
    }
}

fn boot(home: &Home, arguments: &Arguments) -> Boot {
    let memory = format!("{}M", arguments.memory);
    let made = home.cli(["create", "--cold", "-m", &memory, "-c", &arguments.cpus.to_string()]).run().succeeds();
    let sandbox = sandboxvm_tests::home::Sandbox::printed(home, &made);
    let stats = home.cli(["stats", "--json", &sandbox.id]).run().succeeds().json();
    let stats: VmStats = serde_json::from_value(stats).expect("stats --json holds VmStats");
    let memory = memory::of_vmm(sandbox.vmm_pid(), arguments.memory);
    sandbox.remove();
    Boot { stats, create_ms: made.elapsed.as_secs_f64() * 1e3, memory }
}

fn rows(boots: &[Boot]) -> Vec<Row> {
    let of = |name, unit, value: fn(&Boot) -> f64| Row::of(name, unit, boots.iter().map(value));
    let mark = |boot: &Boot| boot.stats.boot.clone().expect("`create` returns once the agent listens");
    let marked = |name, unit, value: fn(sandboxvm_manager::BootMark) -> f64| {
        Row::of(name, unit, boots.iter().map(|boot| value(mark(boot))))
    };
    let mut rows = vec![
        of("sandboxvm create, whole command", "ms", |boot| boot.create_ms),
        of("VMM start to first KVM_RUN", "ms", |boot| {
            millis(boot.stats.first_run_ns.expect("a machine that is ready has run"))
        }),
        marked("VMM start to agent ready", "ms", |mark| millis(mark.elapsed_ns)),
    ];
    if boots[0].stats.host_mode == HostMode::Pvm {
        rows.push(marked("guest-kernel instructions to agent ready", "million", |mark| {
            mark.insn_emulation as f64 / 1e6
        }));
    }
    rows.extend([
        marked("VM exits to agent ready", "exits", |mark| mark.exits as f64),
        of("exits to the VMM's port handlers", "exits", |boot| {
            boot.stats.vcpus.iter().map(|vcpu| vcpu.port_exits as f64).sum()
        }),
        of("exits to the VMM's MMIO handlers", "exits", |boot| {
            boot.stats.vcpus.iter().map(|vcpu| vcpu.mmio_exits as f64).sum()
        }),
        of("VMM memory beside the guest's", "KiB", |boot| boot.memory.overhead_kib as f64),
        of("... of it private", "KiB", |boot| boot.memory.overhead_private_kib as f64),
        of("guest memory touched", "KiB", |boot| boot.memory.guest_kib as f64),
    ]);
    rows
}

fn millis(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// The agent's size is known if it was built beside the VMM. An installed bundle has it only inside
/// its disk.
fn sizes(home: &Home) -> BTreeMap<&'static str, Option<u64>> {
    let size = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.len());
    let part = |name: &str| size(&home.artefacts().part(name));
    let built = fs::canonicalize(home.artefacts().part("sandboxvm-vmm")).ok();
    let agent = built.and_then(|vmm| size(&vmm.with_file_name("sandboxvm-agent")));
    BTreeMap::from([
        ("sandboxvm", size(&home.artefacts().program)),
        ("sandboxvm-vmm", part("sandboxvm-vmm")),
        ("sandboxvm-agent", agent),
        ("vmlinux", part("vmlinux")),
        ("agent.erofs", part("agent.erofs")),
        ("base.erofs", part("base.erofs")),
    ])
}

fn print(report: &Report) {
    let title = format!(
        "boot: {} runs, guest of {} MiB and {} vCPU, host mode {}",
        report.runs, report.memory_mib, report.vcpus, report.host_mode
    );
    table::print(&title, &report.results);
    println!("\nsizes");
    for (name, size) in &report.sizes {
        let size = size.map_or("-".to_owned(), |bytes| bytes.to_string());
        println!("{name:16}  {size:>12}  bytes");
    }
}
