//! Benchmarks of this checkout on this machine; `scripts/bench` builds everything and calls this. Results on stdout as
//! a table or JSON, everything else on stderr.

mod boot;
mod table;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures sandboxvm on this machine")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// From the VMM's start to the agent's listening: time, guest-kernel instructions, exits, memory, sizes
    Boot(boot::Arguments),
}

fn main() {
    match Arguments::parse().benchmark {
        Benchmark::Boot(arguments) => boot::run(&arguments),
    }
}
