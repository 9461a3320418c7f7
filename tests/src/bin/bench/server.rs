//! `bench server`: many clients of `sandboxvm serve` at the same time, with and without a pool of
//! armed machines.

use crate::table::{self, Row};
use sandboxvm_tests::{
    home::{Home, eventually},
    host::memory::resident_kib,
    server::{
        Server,
        load::{Times, clients},
        request,
    },
};
use std::time::{Duration, Instant};

/// Commands of each client, as the title of the table says.
const COMMANDS: usize = 10;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Number of clients
    #[arg(short = 'n', long = "clients", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    clients: u16,
    /// Machines in the pool, or 0 for none. Can be repeated; each pool is measured after the other
    #[arg(long = "pool", value_name = "MACHINES", default_values_t = [0, 8])]
    pools: Vec<u16>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) {
    let rows: Vec<_> = arguments.pools.iter().flat_map(|pool| measure(arguments, *pool)).collect();
    let title = format!("{} clients at the same time: create, ten commands, files, kill", arguments.clients);
    table::report(&title, &rows, arguments.json);
}

fn measure(arguments: &Arguments, pool: u16) -> Vec<Row> {
    let name = if pool == 0 { "no pool".to_owned() } else { format!("pool of {pool}") };
    let home = Home::with_kvm().expect("a benchmark without KVM measures nothing: unset SANDBOXVM_NO_KVM");
    let config = format!(
        "requests_per_second = 100000\nsandboxes_per_key = 10000\n[templates.base]\nmemory = 128\npool = {pool}\n"
    );
    let server = Server::start(&home, &config);
    let readiness = format!("{}/readiness", server.api);
    let ready = || (request("GET", &readiness, &[], None).status == 204).then_some(());
    eventually(Duration::from_secs(120), ready).expect("the pool fills");
    let memory = || resident_kib(server.pid()).expect("the server runs") as f64;
    let before = memory();
    eprintln!("bench: {} clients, {name}", arguments.clients);
    let begin = Instant::now();
    let times = clients(&server, usize::from(arguments.clients), COMMANDS);
    let elapsed = begin.elapsed().as_secs_f64();
    let after = memory();
    server.stop();
    let row = |what: &str, of: &dyn Fn(&Times) -> Vec<Duration>| {
        let values: Vec<f64> = times.iter().flat_map(of).map(|time| time.as_secs_f64()).collect();
        Row::of(format!("{name}: {what}"), "s", values)
    };
    let commands = times.iter().map(|times| times.commands.len()).sum::<usize>();
    vec![
        row("create", &|times| vec![times.create]),
        row("one command", &|times| times.commands.clone()),
        row("files", &|times| vec![times.files]),
        row("kill", &|times| vec![times.kill]),
        Row::of(format!("{name}: commands in a second"), "1/s", [commands as f64 / elapsed]),
        Row::of(format!("{name}: memory of the server, before"), "KiB", [before]),
        Row::of(format!("{name}: memory of the server, after"), "KiB", [after]),
    ]
}
