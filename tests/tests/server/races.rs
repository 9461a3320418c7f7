//! Two calls on one sandbox at the same time end as if one had come after the other. Both responses
//! and the final state must match one of the two orders. The calls are requests of clients, and
//! commands of the CLI on the same sandbox.

use sandboxvm_tests::{
    home::{Home, eventually},
    server::{Server, request, small_config},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant, SystemTime},
};

/// A call on the sandbox. Timeouts are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Connect(u64),
    SetTimeout(u64),
    Pause,
    Kill,
    Fork,
    Snapshot,
    /// A request on the sandbox plane, which resumes a paused sandbox.
    Command,
    /// `sandboxvm reset`.
    Reset,
    /// `sandboxvm rm -f`.
    Remove,
}

use Call::{Command, Connect, Fork, Kill, Pause, Remove, Reset, SetTimeout, Snapshot};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Gone,
}

/// The expected state of a sandbox after the calls so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Model {
    state: State,
    /// The timeout that was last set, or none if the test does not check it.
    timeout: Option<u64>,
}

const MADE_WITH: u64 = 900;
const FAILED: u16 = 1;

impl Call {
    /// Returns the response to this call if no other is under way (an HTTP status, or exit code 0
    /// or 1 of the CLI), and the state after it.
    fn alone(self, before: Model) -> (u16, Model) {
        use State::{Gone, Paused, Running};
        let to = |state| Model { state, ..before };
        let longer = |timeout: u64| Model { timeout: before.timeout.map(|own| own.max(timeout)), ..before };
        match (self, before.state) {
            (Reset | Remove, Gone) => (FAILED, before),
            (Command, Gone) => (502, before),
            (_, Gone) => (404, before),
            (Connect(timeout), Running) => (200, longer(timeout)),
            (Connect(timeout), Paused) => (201, Model { state: Running, timeout: Some(timeout) }),
            (SetTimeout(timeout), _) => (204, Model { timeout: Some(timeout), ..before }),
            (Pause, Running) => (204, to(Paused)),
            (Kill, _) => (204, to(Gone)),
            (Remove, _) => (0, to(Gone)),
            (Command, Running) => (200, before),
            (Command, Paused) => (200, Model { state: Running, timeout: None }),
            (Fork | Snapshot, Running) => (201, before),
            (Pause | Fork | Snapshot, Paused) => (409, before),
            (Reset, Running) => (0, before),
            (Reset, Paused) => (FAILED, before),
        }
    }
}

/// Returns whether `answer` is allowed for `call`, with `other` at the same time, if it would be
/// `expected` alone.
fn agrees(call: Call, other: Call, answer: u16, expected: u16) -> bool {
    match (call, other) {
        // Concurrent removals both succeed.
        (Remove, Kill | Remove) | (Kill, Remove) => true,
        // The end of the machine may interrupt the command.
        (Command, Kill | Remove | Reset) => true,
        _ => answer == expected,
    }
}

struct Race<'a> {
    home: &'a Home,
    server: &'a Server,
    /// How long each call takes alone.
    took: HashMap<Call, Duration>,
    /// A sandbox for the next case, its token, and its state.
    ready: Option<(String, String, State)>,
}

impl<'a> Race<'a> {
    fn new(home: &'a Home, server: &'a Server) -> Self {
        Self { home, server, took: HashMap::new(), ready: None }
    }

    fn post(&self, id: &str, path: &str, body: &Value) -> u16 {
        self.server.ask("POST", &format!("/sandboxes/{id}{path}"), Some(body)).status
    }

    /// Makes the call and returns the response. Removes any copy or snapshot that the call created.
    fn call(&self, call: Call, id: &str, token: &str) -> u16 {
        let cli = |arguments: &[&str]| u16::from(self.home.cli(arguments).run().code() != Some(0));
        match call {
            Connect(timeout) => self.post(id, "/connect", &json!({ "timeout": timeout })),
            SetTimeout(timeout) => self.post(id, "/timeout", &json!({ "timeout": timeout })),
            Pause => self.post(id, "/pause", &json!({})),
            Kill => self.server.ask("DELETE", &format!("/sandboxes/{id}"), None).status,
            Fork => {
                let body = json!({ "count": 1, "timeout": 600 });
                let answer = self.server.ask("POST", &format!("/sandboxes/{id}/fork"), Some(&body));
                if answer.status == 201 {
                    let copy = answer.json()[0]["sandbox"]["sandboxID"].as_str().map(str::to_owned);
                    let Some(copy) = copy else { panic!("{answer:?}") };
                    let _ = self.server.ask("DELETE", &format!("/sandboxes/{copy}"), None).expect(204);
                }
                answer.status
            }
            Snapshot => {
                let answer = self.server.ask("POST", &format!("/sandboxes/{id}/snapshots"), Some(&json!({})));
                if answer.status == 201 {
                    let snapshot = answer.json()["snapshotID"].as_str().expect("an ID").to_owned();
                    let _ = self.server.ask("DELETE", &format!("/templates/{snapshot}"), None).expect(204);
                }
                answer.status
            }
            Command => {
                let headers = [("e2b-sandbox-id", id), ("x-access-token", token), ("content-type", "application/json")];
                let url = format!("{}/process.Process/List", self.server.sandboxes);
                request("POST", &url, &headers, Some(("application/json", b"{}".to_vec()))).status
            }
            Reset => cli(&["reset", id]),
            Remove => cli(&["rm", "-f", id]),
        }
    }

    /// Returns a sandbox in this state.
    fn sandbox(&mut self, state: State) -> (String, String) {
        let (id, token, now) = self.ready.take().unwrap_or_else(|| {
            let body = json!({ "templateID": "base", "timeout": MADE_WITH, "autoPause": true,
                "autoResume": { "enabled": true } });
            let made = self.server.create(&body);
            let text = |name: &str| made[name].as_str().expect("a string").to_owned();
            (text("sandboxID"), text("envdAccessToken"), State::Running)
        });
        if now != state {
            let turn = if state == State::Paused { Pause } else { Connect(MADE_WITH) };
            let began = Instant::now();
            assert!(matches!(self.call(turn, &id, &token), 201 | 204));
            self.took.insert(if state == State::Paused { Pause } else { Connect(0) }, began.elapsed());
        }
        assert_eq!(self.call(SetTimeout(MADE_WITH), &id, &token), 204);
        (id, token)
    }

    /// Makes both calls, the second when a part of the first one's usual time has passed.
    fn run(&mut self, from: State, first: Call, second: Call, part: f64) {
        let (id, token) = self.sandbox(from);
        let kind = if let Connect(_) = first { Connect(0) } else { first };
        let typical = self.took.get(&kind).copied().unwrap_or(Duration::from_millis(200));
        let this = &*self;
        let ((one, took), two) = thread::scope(|scope| {
            let (id, token) = (&id, &token);
            let one = scope.spawn(move || {
                let began = Instant::now();
                (this.call(first, id, token), began.elapsed())
            });
            thread::sleep(typical.mul_f64(part));
            let two = scope.spawn(move || this.call(second, id, token));
            (one.join().expect("an answer"), two.join().expect("an answer"))
        });
        self.took.entry(kind).and_modify(|known| *known = (*known).min(took)).or_insert(took);
        let before = Model { state: from, timeout: Some(MADE_WITH) };
        let order = |a: Call, b: Call| {
            let (answer_a, middle) = a.alone(before);
            let (answer_b, end) = b.alone(middle);
            (answer_a, answer_b, end)
        };
        let (a1, a2, end_a) = order(first, second);
        let (b2, b1, end_b) = order(second, first);
        let fits = |one_alone, two_alone, end: Model| {
            agrees(first, second, one, one_alone) && agrees(second, first, two, two_alone) && self.is(&id, end)
        };
        let settled = eventually(Duration::from_secs(40), || {
            let end = [(a1, a2, end_a), (b1, b2, end_b)].into_iter().find(|(one, two, end)| fits(*one, *two, *end));
            end.map(|(_, _, end)| end)
        });
        let Some(end) = settled else {
            let info = self.server.ask("GET", &format!("/sandboxes/{id}"), None);
            panic!(
                "{from:?}, {first:?} and {second:?} after {part} of it: {one} and {two}, then {info:?}, {:?}; \
                 expected {a1} and {a2} with {end_a:?}, or {b1} and {b2} with {end_b:?}",
                self.traces(&id)
            );
        };
        self.ready = (end.state != State::Gone).then_some((id, token, end.state));
    }

    /// Returns the traces of a sandbox: its record, the snapshot of its pause, and its state in the
    /// CLI's listing.
    fn traces(&self, id: &str) -> (bool, bool, Option<String>) {
        let home = self.home.path();
        let rows = self.home.cli(["ls", "--json"]).run().succeeds().json();
        let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == id));
        let record = home.join(format!("server/sandboxes/{id}.json")).exists();
        let state = row.map(|row| row["state"].as_str().unwrap_or_default().to_owned());
        (record, home.join(format!("snapshots/paused-{id}")).exists(), state)
    }

    /// Returns whether everything that can be observed of the sandbox matches `end`.
    fn is(&self, id: &str, end: Model) -> bool {
        let traces = self.traces(id);
        let info = self.server.ask("GET", &format!("/sandboxes/{id}"), None);
        let (there, state) = match end.state {
            State::Gone => return info.status == 404 && traces == (false, false, None),
            State::Running => ((true, false, Some("running".to_owned())), "running"),
            State::Paused => ((true, true, Some("exited".to_owned())), "paused"),
        };
        if info.status != 200 || info.json()["state"] != state || traces != there {
            return false;
        }
        let end_at = info.json()["endAt"].as_str().and_then(|text| humantime::parse_rfc3339_weak(text).ok());
        let end_at = end_at.expect("a time");
        let left = end_at.duration_since(SystemTime::now()).unwrap_or_default();
        // The timeout was set some time ago, and never exceeds its value.
        end.timeout.is_none_or(|timeout| (timeout.saturating_sub(300)..=timeout).contains(&left.as_secs()))
    }
}

fn race(cases: impl IntoIterator<Item = (State, Call, Call, f64)>) {
    let Some(home) = Home::with_kvm() else { return };
    let server = Server::start(&home, &format!("requests_per_second = 1000\n{}", small_config()));
    let mut race = Race::new(&home, &server);
    for (from, first, second, part) in cases {
        race.run(from, first, second, part);
    }
    if let Some((id, _, _)) = race.ready.take() {
        let _ = server.ask("DELETE", &format!("/sandboxes/{id}"), None).expect(204);
    }
    server.stop();
    home.assert_nothing_left();
}

#[test]
fn calls_while_a_pause_is_under_way_end_as_if_one_came_after_the_other() {
    let others = [Connect(2500), Command, SetTimeout(1500), Pause, Snapshot, Fork, Reset, Remove, Kill];
    race(others.into_iter().map(|other| (State::Running, Pause, other, 0.4)));
}

#[test]
fn calls_while_a_resume_is_under_way_end_as_if_one_came_after_the_other() {
    let others = [Connect(3500), Command, SetTimeout(1500), Pause, Snapshot, Fork, Reset, Remove, Kill];
    race(others.into_iter().map(|other| (State::Paused, Connect(2500), other, 0.4)));
}

#[test]
fn calls_while_a_sandbox_is_removed_end_as_if_one_came_after_the_other() {
    let others = [Connect(2500), SetTimeout(1500), Pause, Fork, Kill];
    let by = |removal: Call| move |other: Call| (State::Running, removal, other, 0.2);
    race(others.into_iter().map(by(Kill)).chain(others.into_iter().map(by(Remove))));
}

#[test]
#[ignore = "soak: all pairs at four moments, some 20 minutes"]
fn all_pairs_of_calls_end_as_if_one_came_after_the_other() {
    let calls =
        |timeout| [Connect(timeout), SetTimeout(timeout + 100), Pause, Kill, Fork, Snapshot, Command, Reset, Remove];
    let states = [State::Running, State::Paused];
    let pairs = calls(2500).into_iter().flat_map(|first| calls(3500).map(|second| (first, second)));
    let parts = [0.0, 0.25, 0.5, 0.75];
    let cases = pairs.flat_map(|(first, second)| states.map(|state| (state, first, second)));
    race(cases.flat_map(|(state, first, second)| parts.map(|part| (state, first, second, part))));
}
