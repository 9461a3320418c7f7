//! The model: which sandboxes and snapshots a home has, and what their guests hold. Compares it with the home.

use crate::{kills::Figures, served::Served};
use sandboxvm_tests::{
    cli::Finished,
    home::{Home, Sandbox, eventually},
};
use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Longest that something is waited for that takes a moment on a quiet host.
pub const SOON: Duration = Duration::from_secs(60);
/// A port of guests that have a supervisor. Nothing in the guest listens there.
pub const PORT: &str = "8000";
/// The words of a VMM that still writes what a killed command asked for.
const BEING_WRITTEN: &str = "is being written";

/// A file of a guest that holds a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Disk,
    Memory,
}

impl Place {
    /// Where two guests differ, if they do: a look into a guest is the dearest thing here, so that one place has to do.
    pub fn that_differs(one: Contents, other: Contents) -> Self {
        if one.memory == other.memory { Self::Disk } else { Self::Memory }
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Disk => "/root/word",
            Self::Memory => "/dev/shm/word",
        }
    }
}

/// What a guest holds: a word on its disk and one in its memory. It has none before it receives one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contents {
    pub disk: Option<u32>,
    pub memory: Option<u32>,
}

impl Contents {
    pub fn with(mut self, place: Place, word: u32) -> Self {
        match place {
            Place::Disk => self.disk = Some(word),
            Place::Memory => self.memory = Some(word),
        }
        self
    }

    pub fn at(self, place: Place) -> Option<u32> {
        match place {
            Place::Disk => self.disk,
            Place::Memory => self.memory,
        }
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |word: Option<u32>| word.map_or_else(|| "none".to_owned(), |word| word.to_string());
        write!(f, "{} {}", word(self.disk), word(self.memory))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Running,
    Paused,
    /// Its VMM was killed.
    Dead,
}

impl Life {
    /// As listings name it.
    /// Whether this is what `ls` shows. A machine that is gone is "dead" if it was killed, and "exited" if it could report
    /// that it ended, as the one of a reset whose command was killed.
    pub fn is_shown_as(self, state: &str) -> bool {
        state == self.state() || (self, state) == (Self::Dead, "exited")
    }

    pub fn state(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Dead => "dead",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Modelled {
    pub life: Life,
    pub contents: Contents,
    /// What a reset restores. A copy of a running sandbox has none.
    pub beginning: Option<Contents>,
    /// It has a published port and a time to live.
    pub supervised: bool,
}

impl Modelled {
    pub fn new(contents: Contents, beginning: Option<Contents>) -> Self {
        Self { life: Life::Running, contents, beginning, supervised: false }
    }
}

pub struct World<'h> {
    pub home: &'h Home,
    pub random: fastrand::Rng,
    pub sandboxes: BTreeMap<String, Modelled>,
    pub snapshots: BTreeMap<String, Contents>,
    /// The server and its sandboxes, once there was one.
    pub served: Option<Served>,
    pub figures: Figures,
    /// How long steps took that were not killed.
    pub usual: BTreeMap<String, Duration>,
    /// Words and names that were used.
    used: u32,
}

impl<'h> World<'h> {
    pub fn new(home: &'h Home, seed: u64) -> Self {
        Self {
            home,
            random: fastrand::Rng::with_seed(seed),
            sandboxes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            served: None,
            figures: Figures::default(),
            usual: BTreeMap::new(),
            used: 0,
        }
    }

    pub fn fresh(&mut self) -> u32 {
        self.used += 1;
        self.used
    }

    pub fn pick_snapshot(&mut self) -> Option<(String, Contents)> {
        let at = self.random.usize(..self.snapshots.len().max(1));
        self.snapshots.iter().nth(at).map(|(name, contents)| (name.clone(), *contents))
    }

    pub fn pick(&mut self, fits: impl Fn(&Modelled) -> bool) -> Option<(String, Modelled)> {
        let fitting: Vec<_> = self.sandboxes.iter().filter(|(_, sandbox)| fits(sandbox)).collect();
        let at = self.random.usize(..fitting.len().max(1));
        fitting.get(at).map(|(id, sandbox)| ((*id).clone(), (*sandbox).clone()))
    }

    pub fn guest(&self, id: &str) -> Sandbox<'h> {
        Sandbox::called(self.home, id)
    }

    /// Runs a command that no process disturbs, which therefore succeeds: a machine that still writes what a killed command
    /// asked for is ready soon.
    #[track_caller]
    pub fn run(&self, arguments: &[String]) -> Finished {
        let ran = eventually(SOON, || {
            let ran = self.home.cli(arguments).run();
            (ran.code() != Some(125) || !ran.err().contains(BEING_WRITTEN)).then_some(ran)
        });
        ran.unwrap_or_else(|| panic!("{arguments:?}: the machine is never done writing"))
    }

    /// IDs of the sandboxes that no server created, in their order.
    #[track_caller]
    pub fn listed(&self) -> Vec<String> {
        let mut listed = self.home.listed();
        listed.retain(|id| !self.served.as_ref().is_some_and(|served| served.owns(id)));
        listed.sort();
        listed
    }

    /// Names of the snapshots that no server took, in their order.
    #[track_caller]
    pub fn listed_snapshots(&self) -> Vec<String> {
        let mut names = self.home.snapshot_names();
        names.retain(|name| !name.starts_with("paused-"));
        names.sort();
        names
    }

    #[track_caller]
    pub fn state(&self, id: &str) -> String {
        self.home.row(id)["state"].as_str().unwrap_or_default().to_owned()
    }

    /// The word that a running guest has in one place: `Err` where it cannot be asked, with the reason.
    pub fn word(&self, id: &str, place: Place) -> Result<Option<u32>, String> {
        let copy = self.home.scratch("read");
        let _ = fs::remove_file(&copy);
        let source = format!("{id}:{}", place.path());
        let copied = self.home.cli(["cp", &source, &copy.display().to_string()]).run();
        match copied.code() {
            Some(0) => {
                let text = fs::read_to_string(&copy).map_err(|error| error.to_string())?;
                text.trim().parse().map(Some).map_err(|error| format!("{source} holds {text:?}: {error}"))
            }
            _ if copied.err().contains("no such file") || copied.err().contains("No such file") => Ok(None),
            _ => Err(copied.transcript()),
        }
    }

    /// Checks that the guest has what it should have, or that a command says why it cannot be asked.
    #[track_caller]
    pub fn check(&self, id: &str, sandbox: &Modelled) {
        let script = "for f in /root/word /dev/shm/word; do w=none; [ ! -e $f ] || read -r w < $f; echo $w; done";
        let run = self.guest(id).sh(script);
        match sandbox.life {
            Life::Running => {
                let words = run.succeeds().out().trim_end().replace('\n', " ");
                assert_eq!(words, sandbox.contents.to_string(), "{id}: {sandbox:?}");
                if sandbox.supervised {
                    self.check_supervised(id);
                }
            }
            Life::Paused => drop(run.fails_with(&["is paused", "resume"])),
            Life::Dead => drop(run.fails_with(&["is not running"])),
        }
    }

    /// After a command that used the sandbox: it has its port and its time to live, and a process that keeps both.
    #[track_caller]
    pub fn check_supervised(&self, id: &str) {
        let supervision = || {
            let rows = self.home.cli(["inspect", id]).run().succeeds().json();
            rows[0]["supervision"].clone()
        };
        let kept = eventually(SOON, || {
            let shown = supervision();
            let host: SocketAddr = shown["ports"][0]["host"].as_str()?.parse().ok()?;
            let listens = TcpStream::connect_timeout(&host, Duration::from_secs(5)).is_ok();
            (shown["supervised"] == true && shown["ttl_left_ms"].is_number() && listens).then_some(())
        });
        assert!(kept.is_some(), "{id} is not supervised: {}", supervision());
    }

    /// Checks that everything that should be there is there, and nothing else.
    #[track_caller]
    pub fn check_all(&self) {
        assert_eq!(self.listed(), self.sandboxes.keys().cloned().collect::<Vec<_>>());
        assert_eq!(self.listed_snapshots(), self.snapshots.keys().cloned().collect::<Vec<_>>());
        for (id, sandbox) in &self.sandboxes {
            let state = self.state(id);
            assert!(sandbox.life.is_shown_as(&state), "{id} is {state}: {sandbox:?}");
            self.check(id, sandbox);
        }
    }

    /// Checks everything, then removes it: nothing is left.
    pub fn end(mut self) {
        self.check_all();
        let verified = self.home.cli(["audit", "verify", "--json"]).run().succeeds().json();
        assert!(verified.as_array().is_some_and(|verdicts| !verdicts.is_empty()), "{verified}");
        if let Some(served) = self.served.take() {
            served.end();
        }
        for id in self.sandboxes.keys() {
            self.guest(id).remove();
        }
        self.home.remove_snapshots();
        let _ = self.home.cli(["prune"]).run().succeeds();
        self.home.assert_nothing_left();
    }
}
