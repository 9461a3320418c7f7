//! A server on the home, killed in the middle of calls. The next one takes over its sandboxes: its records agree with what
//! is there, and a call had its effect or had none.

use crate::{
    kills::Victim,
    world::{Place, SOON, World},
};
use sandboxvm_tests::{
    home::{Home, eventually},
    host::processes,
    server::{Answer, Server, small_config, try_request},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::Duration,
};

/// Sandboxes of the server at the same time.
const MAX_SERVED: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ServedSandbox {
    is_paused: bool,
    /// On its disk.
    word: Option<u32>,
}

#[derive(Debug)]
pub struct Served {
    server: Option<Server>,
    key: String,
    sandboxes: BTreeMap<String, ServedSandbox>,
}

#[derive(Debug, Clone)]
enum Call {
    /// With this number as metadata.
    Create(u32),
    Pause(String),
    Connect(String),
    Timeout(String),
    Delete(String),
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Pause(_) => "pause",
            Self::Connect(_) => "connect",
            Self::Timeout(_) => "timeout",
            Self::Delete(_) => "delete",
        }
    }

    fn request(&self) -> (&'static str, String, Option<Value>) {
        let timeout = || Some(json!({ "timeout": 3000 }));
        match self {
            Self::Create(number) => {
                let body =
                    json!({ "templateID": "base", "timeout": 3000, "metadata": { "number": number.to_string() } });
                ("POST", "/v2/sandboxes".to_owned(), Some(body))
            }
            Self::Pause(id) => ("POST", format!("/sandboxes/{id}/pause"), None),
            Self::Connect(id) => ("POST", format!("/v2/sandboxes/{id}/connect"), timeout()),
            Self::Timeout(id) => ("POST", format!("/sandboxes/{id}/timeout"), timeout()),
            Self::Delete(id) => ("DELETE", format!("/sandboxes/{id}"), None),
        }
    }

    fn sandbox(&self) -> Option<&str> {
        match self {
            Self::Create(_) => None,
            Self::Pause(id) | Self::Connect(id) | Self::Timeout(id) | Self::Delete(id) => Some(id),
        }
    }
}

impl Served {
    fn start(home: &Home) -> Self {
        let server = Server::start(home, &small_config());
        let key = server.key().to_owned();
        Self { server: Some(server), key, sandboxes: BTreeMap::new() }
    }

    pub fn owns(&self, id: &str) -> bool {
        self.sandboxes.contains_key(id)
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("one is started after each kill")
    }

    /// The rows of its list by ID.
    fn list(&self) -> BTreeMap<String, Value> {
        let path = "/v2/sandboxes?state=running,paused&limit=100";
        let rows = self.server().ask_as(&self.key, "GET", path, None).expect(200).json();
        let rows = rows.as_array().expect("a list").clone();
        rows.into_iter().map(|row| (row["sandboxID"].as_str().expect("a sandbox has an ID").to_owned(), row)).collect()
    }

    /// Removes its sandboxes and stops it.
    pub fn end(mut self) {
        for id in self.sandboxes.keys() {
            let _ = self.server().ask_as(&self.key, "DELETE", &format!("/sandboxes/{id}"), None).expect(204);
        }
        self.server.take().expect("one is started after each kill").stop();
    }
}

impl World<'_> {
    /// Calls the server, kills it meanwhile, starts another, and learns what the call came to.
    pub fn kill_server(&mut self) {
        let served = self.served.take().unwrap_or_else(|| Served::start(self.home));
        let served = self.served.insert(served);
        let call = draw(served, &mut self.random, self.figures.sum());
        let name = format!("server's {}", call.name());
        let usual = self.usual.get(&name).copied().unwrap_or(Duration::from_millis(300));
        let moment = usual.mul_f64(self.random.f64());
        let server = served.server.take().expect("one is started after each kill");
        let (method, path, body) = call.request();
        let url = format!("{}{path}", server.api);
        let key = served.key.clone();
        let asking = thread::spawn(move || {
            let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
            let began = std::time::Instant::now();
            (try_request(method, &url, &[("x-api-key", &key)], body).ok(), began.elapsed())
        });
        thread::sleep(moment);
        let was_answered = asking.is_finished();
        processes::kill(server.pid());
        let (answer, took) = asking.join().expect("a request does not panic");
        server.kill();
        // The launcher is killed, and the front follows it. In between it may say that the launcher does not answer, which
        // tells as much about the call as silence.
        let answer = answer.filter(|answer| was_answered || answer.status < 500);
        let status = answer.as_ref().map(|answer| answer.status);
        println!("{call:?}: server killed at {moment:?} of {usual:?}: {status:?}");
        let next = if was_answered { (usual * 3 + took) / 4 } else { usual.mul_f64(1.05) };
        self.usual.insert(name.clone(), next);
        served.server = Some(Server::start(self.home, &small_config()));
        let came = self.learn_from_next_server(&call, answer.as_ref());
        println!("    {came}");
        if answer.is_none() {
            self.figures.count(Victim::Server, format!("{}: {came}", call.name()));
        }
    }

    #[track_caller]
    fn learn_from_next_server(&mut self, call: &Call, answer: Option<&Answer>) -> &'static str {
        if let Some(answer) = answer {
            assert!((200..300).contains(&answer.status), "{call:?}: {answer:?}");
        }
        let served = self.served.as_mut().expect("it was just started");
        let ours: BTreeSet<String> = self.sandboxes.keys().cloned().collect();
        // The records agree with what is there.
        let agreed = eventually(SOON, || {
            let listed = served.list();
            let there: BTreeSet<String> = self.home.listed().into_iter().filter(|id| !ours.contains(id)).collect();
            (there == listed.keys().cloned().collect()).then_some(listed)
        });
        let listed =
            agreed.unwrap_or_else(|| panic!("{call:?}: {:?} are there: {:?}", self.home.listed(), served.list()));
        let mut before = served.sandboxes.clone();
        let target = call.sandbox().and_then(|id| before.remove_entry(id));
        let mut came = "ToNothing";
        for (id, row) in &listed {
            let is_paused = row["state"] == "paused";
            let runs = self.home.row(id)["state"] == "running";
            assert_eq!(runs, !is_paused, "{id}: {row}: {}", self.home.row(id));
            match (before.remove(id), &target) {
                (Some(known), _) => assert_eq!(is_paused, known.is_paused, "{id}"),
                (None, Some((its, known))) if its == id => {
                    let may_change = matches!(call, Call::Pause(_) | Call::Connect(_));
                    assert!(may_change || is_paused == known.is_paused, "{call:?}: {row}");
                    if is_paused != known.is_paused {
                        came = "Whole";
                    }
                    served.sandboxes.insert(id.clone(), ServedSandbox { is_paused, ..*known });
                }
                (None, _) => {
                    let Call::Create(number) = call else { panic!("{call:?}: where does {id} come from? {row}") };
                    assert_eq!(row["metadata"]["number"], number.to_string(), "{row}");
                    served.sandboxes.insert(id.clone(), ServedSandbox { is_paused, word: None });
                    came = "Whole";
                }
            }
        }
        assert!(before.is_empty(), "{call:?}: {before:?} are lost");
        match (&target, call) {
            (Some((id, _)), Call::Delete(_)) if !listed.contains_key(id) => {
                served.sandboxes.remove(id);
                came = "Whole";
            }
            (Some((id, _)), _) => assert!(listed.contains_key(id), "{call:?}: {id} is lost"),
            (None, _) => {}
        }
        if answer.is_some() && !matches!(call, Call::Timeout(_)) {
            assert_eq!(came, "Whole", "{call:?} was answered: {answer:?}");
        }
        if let Some(id) = call.sandbox() {
            self.check_served(id);
        } else if came == "Whole" {
            self.mark_newest();
        }
        came
    }

    /// A sandbox of the server holds its word, whichever server it has had.
    #[track_caller]
    fn check_served(&self, id: &str) {
        let its = self.served.as_ref().and_then(|served| served.sandboxes.get(id));
        if let Some(sandbox) = its.filter(|sandbox| !sandbox.is_paused) {
            assert_eq!(self.word(id, Place::Disk), Ok(sandbox.word), "{id}");
        }
    }

    /// Gives the sandbox that was just made a word.
    fn mark_newest(&mut self) {
        let word = self.fresh();
        let source = self.home.scratch("word");
        fs::write(&source, format!("{word}\n")).expect("the test's directory can be written");
        let served = self.served.as_mut().expect("it was just started");
        for (id, sandbox) in served.sandboxes.iter_mut().filter(|(_, sandbox)| sandbox.word.is_none()) {
            let to = format!("{id}:{}", Place::Disk.path());
            let _ = self.home.cli(["cp", &source.display().to_string(), &to]).run().succeeds();
            sandbox.word = Some(word);
        }
    }
}

fn draw(served: &Served, random: &mut fastrand::Rng, number: usize) -> Call {
    let all: Vec<(&String, &ServedSandbox)> = served.sandboxes.iter().collect();
    let create = Call::Create(u32::try_from(number).expect("a number of kills"));
    if all.is_empty() || (all.len() < MAX_SERVED && random.u8(..3) == 0) {
        return create;
    }
    let (id, sandbox) = all[random.usize(..all.len())];
    match random.u8(..8) {
        0 => Call::Delete(id.clone()),
        1 if !sandbox.is_paused => Call::Timeout(id.clone()),
        _ if sandbox.is_paused => Call::Connect(id.clone()),
        _ => Call::Pause(id.clone()),
    }
}
