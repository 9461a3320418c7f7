//! `bench first-output`: a guest that writes to its console without end is snapshotted. Measures
//! the time from the request for a copy to the copy's first byte on the console.

use crate::{
    rig::{Rig, Runs, instructions, micros},
    table::{self, Row},
};
use sandboxvm_manager::{SandboxName, SandboxSpec, StartFrom};
use sandboxvm_tests::library::run as exec;
use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

pub fn run(arguments: &Runs) {
    let rig = Rig::new(256);
    eprintln!("bench: a guest that ticks on its console");
    let name = SandboxName::try_from("ticking".to_owned()).expect("a name");
    let spec = SandboxSpec { start_from: StartFrom::Snapshot(name.clone()), ..rig.spec.clone() };
    rig.block_on(async {
        let started = rig.create().await;
        // Writes to the console as often as a shell can.
        let ticker = "exec >/dev/console 2>/dev/null </dev/null; while :; do printf t; done";
        exec(started.sandbox(), &["sh", "-c", &format!("setsid sh -c '{ticker}' &")]).await;
        let console = started.sandbox().path().join("console.log");
        while fs::metadata(&console).expect("the sandbox has a console log").len() < 100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        started.sandbox().snapshot(name).await.unwrap_or_else(|error| panic!("{error}"));
        started.finish().await.expect("the sandbox can be removed");
    });
    let sandboxes = rig.manager.root().join("sandboxes");
    let (mut asked, mut spawned, mut instructions_until) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        let before = entries(&sandboxes);
        let begun = Instant::now();
        let watcher = {
            let sandboxes = sandboxes.clone();
            thread::spawn(move || first_byte(&sandboxes, &before))
        };
        rig.block_on(async {
            let started = rig.manager.start(&rig.bundle, &spec).await.unwrap_or_else(|error| panic!("{error}"));
            let spawn = started.spawned_at().expect("the VMM was started");
            // The runtime may block here, because the VMM does not need it.
            let first = watcher.join().expect("the guest writes to its console");
            asked.push(micros(first - begun));
            spawned.push(micros(first - spawn));
            let stats = started.sandbox().stats().await.expect("the VMM responds");
            instructions_until.push(instructions(&stats));
            started.finish().await.expect("the sandbox can be removed");
        });
    }
    let rows = [
        Row::of("asked for -> first byte on the console", "us", asked),
        Row::of("VMM spawned -> first byte on the console", "us", spawned),
        Row::of("guest-kernel instructions until shortly after", "insns", instructions_until),
    ];
    table::report(&format!("first output: {} copies, guest of 256 MiB", arguments.runs), &rows, arguments.json);
}

fn entries(directory: &Path) -> HashSet<OsString> {
    fs::read_dir(directory).expect("the home is there").flatten().map(|entry| entry.file_name()).collect()
}

/// Waits, without sleeping, for a sandbox that is not in `before` and for output in its console
/// log.
fn first_byte(sandboxes: &Path, before: &HashSet<OsString>) -> Instant {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut log: Option<PathBuf> = None;
    loop {
        assert!(Instant::now() < deadline, "nothing on the console");
        if let Some(log) = &log {
            if fs::metadata(log).is_ok_and(|metadata| metadata.len() > 0) {
                return Instant::now();
            }
        } else {
            let new = entries(sandboxes).into_iter().find(|name| !before.contains(name));
            log = new.map(|name| sandboxes.join(name).join("console.log"));
        }
    }
}
