//! Many clients of one server at once, each of whom makes a sandbox, runs commands, writes and reads files, and kills it;
//! for the benchmark and the tests.

use crate::{envd::Envd, server::Server};
use serde_json::json;
use std::{
    thread,
    time::{Duration, Instant},
};

/// What one client does in its sandbox.
pub const COMMANDS: usize = 10;

/// How long the parts of one client's work took.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// From asking for a sandbox to having it.
    pub create: Duration,
    /// Each command.
    pub commands: Vec<Duration>,
    /// Writing and reading a file.
    pub files: Duration,
    /// From asking for its end to having it.
    pub kill: Duration,
}

/// So many clients at once.
///
/// # Panics
/// When one of them does not get what is its own.
#[must_use]
pub fn clients(server: &Server, count: usize) -> Vec<Times> {
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..count).map(|number| scope.spawn(move || client(server, server.key(), number, COMMANDS))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client failed; its words are above")).collect()
    })
}

/// One of them, with this key, that runs so many commands.
///
/// # Panics
/// As [`clients`].
#[track_caller]
#[must_use]
pub fn client(server: &Server, key: &str, number: usize, commands: usize) -> Times {
    let mut times = Times::default();
    let mut timed = Instant::now();
    let mut lap = || std::mem::replace(&mut timed, Instant::now()).elapsed();
    let own = format!("client-{number}");
    let wanted = json!({ "templateID": "base", "timeout": 3600, "envVars": { "OWN": own } });
    let created = server.ask_as(key, "POST", "/v2/sandboxes", Some(&wanted)).expect(201).json();
    times.create = lap();
    let sandbox = Envd::of(server, &created);
    for command in 0..commands {
        let ran = sandbox.run(&format!("echo $OWN {command} >> ~/log; echo $OWN {command}"));
        assert_eq!((ran.code, ran.stdout), (0, format!("{own} {command}\n")));
        times.commands.push(lap());
    }
    let content = own.repeat(1000);
    sandbox.write("/home/user/file", content.as_bytes());
    assert_eq!(sandbox.read("/home/user/file"), content);
    let log: String = (0..commands).map(|command| format!("{own} {command}\n")).collect();
    assert_eq!(sandbox.read("/home/user/log"), log, "of this client alone, and all of it");
    times.files = lap();
    let _ = server.ask_as(key, "DELETE", &format!("/sandboxes/{}", sandbox.id), None).expect(204);
    times.kill = lap();
    times
}
