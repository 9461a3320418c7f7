//! The snapshots of a test's home: creating, listing and removing them with the CLI.

use crate::home::Home;

impl Home {
    /// Creates a snapshot. Asserts that it succeeds.
    #[track_caller]
    pub fn snapshot(&self, sandbox: &str, name: &str) {
        let made = self.cli(["snapshot", "create", sandbox, name]).run().succeeds();
        assert_eq!(made.out(), format!("{name}\n"));
    }

    /// Returns the names of the snapshots that `snapshot ls` shows.
    #[track_caller]
    #[must_use]
    pub fn snapshot_names(&self) -> Vec<String> {
        self.cli(["snapshot", "ls", "-q"]).run().succeeds().out().lines().map(str::to_owned).collect()
    }

    /// Removes all snapshots.
    #[track_caller]
    pub fn remove_snapshots(&self) {
        let names = self.snapshot_names();
        if !names.is_empty() {
            let _ = self.cli(["snapshot", "rm"]).args(names).run().succeeds();
        }
    }
}
