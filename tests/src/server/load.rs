//! Many clients of one server at the same time. Each creates a sandbox, runs commands, writes and
//! reads files, and kills the sandbox. The benchmark and the tests use them.

use crate::server::{Server, envd::Envd};
use serde_json::json;
use std::{
    thread,
    time::{Duration, Instant},
};

/// Durations of the parts of one client's work.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Creating the sandbox.
    pub create: Duration,
    /// Each command.
    pub commands: Vec<Duration>,
    /// Writing and reading a file.
    pub files: Duration,
    /// Ending the sandbox.
    pub kill: Duration,
}

/// Runs `count` clients at the same time, each of which runs `commands` commands.
///
/// # Panics
/// Panics if a client sees anything but its own data.
#[must_use]
pub fn clients(server: &Server, count: usize, commands: usize) -> Vec<Times> {
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..count).map(|number| scope.spawn(move || client(server, server.key(), number, commands))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a client failed, and its message is above")).collect()
    })
}

/// Runs one client, with this key, that runs `commands` commands.
///
/// # Panics
/// Panics as [`clients`].
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
    assert_eq!(sandbox.read("/home/user/log"), log, "the log has exactly the lines of this client");
    times.files = lap();
    let _ = server.ask_as(key, "DELETE", &format!("/sandboxes/{}", sandbox.id), None).expect(204);
    times.kill = lap();
    times
}
