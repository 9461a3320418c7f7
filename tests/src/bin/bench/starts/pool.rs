//! `bench pool`: from a request to a full pool for a sandbox to its first guest instruction.

use crate::{
    rig::{Rig, Runs, monotonic_ns},
    table::{self, Row},
};
use sandboxvm_manager::{Pool, PoolRequest};
use std::time::Instant;

pub fn run(arguments: &Runs) {
    let rig = Rig::new(256);
    eprintln!("bench: making the ready snapshot");
    let mut taken = Vec::new();
    rig.block_on(async {
        rig.create().await.finish().await.expect("the sandbox can be removed");
        let pool = Pool::new(rig.manager.clone(), rig.bundle.clone(), rig.spec.clone(), 1);
        for _ in 0..arguments.runs {
            pool.filled().await.expect("the pool can be filled");
            let asked = monotonic_ns(Instant::now());
            let mut started = pool.take(&PoolRequest::default()).await.expect("a sandbox");
            started.ready().await.expect("the machine runs");
            let first_run = started.sandbox().timeline().await.expect("the VMM responds").first_run;
            taken.push((first_run.expect("the machine runs") as f64 - asked) / 1e3);
            started.finish().await.expect("the sandbox can be removed");
        }
    });
    let rows = [Row::of("asked for -> first guest instruction", "us", taken)];
    table::report(&format!("pool: {} sandboxes taken, guest of 256 MiB", arguments.runs), &rows, arguments.json);
}
