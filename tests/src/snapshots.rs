//! The snapshots of a test's home: making, listing and taking them away, as their users do.

use crate::home::Home;

impl Home {
    /// Makes a snapshot and expects that to work.
    #[track_caller]
    pub fn snapshot(&self, sandbox: &str, name: &str) {
        let made = self.cli(["snapshot", "create", sandbox, name]).run().succeeds();
        assert_eq!(made.out(), format!("{name}\n"));
    }

    /// Names of the snapshots that `snapshot ls` shows.
    #[track_caller]
    #[must_use]
    pub fn snapshot_names(&self) -> Vec<String> {
        self.cli(["snapshot", "ls", "-q"]).run().succeeds().out().lines().map(str::to_owned).collect()
    }

    /// Removes all of them.
    #[track_caller]
    pub fn remove_snapshots(&self) {
        let names = self.snapshot_names();
        if !names.is_empty() {
            let _ = self.cli(["snapshot", "rm"]).args(names).run().succeeds();
        }
    }
}
