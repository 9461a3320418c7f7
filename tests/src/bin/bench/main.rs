//! Benchmarks of this checkout on this machine. `scripts/bench` builds everything and runs this
//! program. The results are on stdout, as a table or JSON, and everything else is on stderr.

mod copies;
mod images;
mod neighbours;
mod network;
mod reclaim;
mod rig;
mod server;
mod shares;
mod starts;
mod table;

use clap::{Parser, Subcommand};
use copies::{clones, fork, reset, snapshot};
use sandboxvm_tests::interruption;
use starts::{boot, first_output, jail, pool, restore};

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures sandboxvm on this machine")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// From the start of the VMM until the agent listens: time, guest-kernel instructions, exits,
    /// memory, sizes
    Boot(boot::Arguments),
    /// From a snapshot to the first guest instruction, and to the end of the first command
    Restore(restore::Arguments),
    /// From a snapshot to the first byte on the console
    FirstOutput(rig::Runs),
    /// From a pool of armed machines to the first guest instruction
    Pool(rig::Runs),
    /// Cost of each part of the VMM's jail for a restore
    Jail(rig::Runs),
    /// Live forks of a sandbox with 64 MiB of written memory
    Fork(fork::Arguments),
    /// Reset to the beginning, in place
    Reset(rig::Runs),
    /// Snapshots of 4 MiB of changes, and of everything
    Snapshot(rig::Runs),
    /// Container images: pull, unpack, start, and memory of sandboxes of one image
    Images(images::Arguments),
    /// Memory of idle clones of one snapshot
    Clones(clones::Arguments),
    /// Memory that a guest frees, and how much of it the host gets back
    Reclaim(reclaim::Arguments),
    /// Response time of one sandbox while another one attacks from the inside
    Neighbours(neighbours::Arguments),
    /// A sandbox with a network: start, memory, throughput, requests; and frames without a guest,
    /// beside passt and slirp4netns
    Network(network::Arguments),
    /// Many clients of `serve` at the same time, with and without a pool
    Server(server::Arguments),
    /// Jobs with files in a live share, on the own disk, in a workspace and on the host
    Shares(shares::Arguments),
}

fn main() {
    let arguments = Arguments::parse();
    interruption::end_sandboxes_on_signals();
    match arguments.benchmark {
        Benchmark::Boot(arguments) => boot::run(&arguments),
        Benchmark::Restore(arguments) => restore::run(&arguments),
        Benchmark::FirstOutput(arguments) => first_output::run(&arguments),
        Benchmark::Pool(arguments) => pool::run(&arguments),
        Benchmark::Jail(arguments) => jail::run(&arguments),
        Benchmark::Fork(arguments) => fork::run(&arguments),
        Benchmark::Reset(arguments) => reset::run(&arguments),
        Benchmark::Snapshot(arguments) => snapshot::run(&arguments),
        Benchmark::Images(arguments) => images::run(&arguments),
        Benchmark::Clones(arguments) => clones::run(&arguments),
        Benchmark::Reclaim(arguments) => reclaim::run(&arguments),
        Benchmark::Neighbours(arguments) => neighbours::run(&arguments),
        Benchmark::Network(arguments) => network::run(&arguments),
        Benchmark::Server(arguments) => server::run(&arguments),
        Benchmark::Shares(arguments) => shares::run(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_benchmarks_run_less_often() {
        let runs = |words: &[&str]| match Arguments::try_parse_from([&["bench"], words].concat()).unwrap().benchmark {
            Benchmark::Boot(boot) => boot.all.runs,
            Benchmark::Reclaim(reclaim) => reclaim.all.runs,
            Benchmark::Neighbours(neighbours) => neighbours.all.runs,
            Benchmark::Pool(all) => all.runs,
            other => panic!("{other:?}"),
        };
        assert_eq!([["boot"], ["neighbours"], ["reclaim"], ["pool"]].map(|words| runs(&words)), [5, 5, 3, 50]);
        assert_eq!(runs(&["boot", "-n", "7"]), 7);
    }
}
