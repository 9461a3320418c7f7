//! What envd knows of each sandbox's processes and directories beyond what the agent knows. It is kept here by sandbox ID, not
//! in the registry. It ends with the server, and is dropped after its sandbox was removed.

use super::{filesystem::watchers::Watchers, homes::Homes, process::table::Processes};
use crate::registry::entry::{Entry, Reached};
use sandboxvm_manager::{Sandbox, SandboxId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// The state of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct SandboxState {
    pub(super) processes: Processes,
    pub(super) watchers: Watchers,
    pub(super) homes: Homes,
}

/// The states of all sandboxes that envd was asked for.
#[derive(Debug, Default)]
pub(crate) struct SandboxStates(Mutex<HashMap<SandboxId, Known>>);

/// A state, and the sandbox that it is of while that is known to the registry.
#[derive(Debug)]
struct Known {
    entry: Weak<Entry>,
    state: Arc<SandboxState>,
}

impl SandboxStates {
    /// The state of a sandbox, a new one on the first request to it. States of removed sandboxes are dropped then.
    pub(crate) fn of(&self, entry: &Arc<Entry>) -> Arc<SandboxState> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = states.get(&entry.id) {
            return Arc::clone(&known.state);
        }
        states.retain(|_, known| known.entry.strong_count() > 0);
        let state = Arc::default();
        states.insert(entry.id.clone(), Known { entry: Arc::downgrade(entry), state: Arc::clone(&state) });
        state
    }
}

/// What envd's handlers get besides the app: the sandbox that the request is for, running, and its state.
#[derive(Debug)]
pub(crate) struct Target {
    reached: Reached,
    state: Arc<SandboxState>,
}

/// A [`Target`] as it stands among a request's extensions.
pub(crate) type SharedTarget = Arc<Target>;

impl Target {
    pub(crate) fn new(reached: Reached, states: &SandboxStates) -> SharedTarget {
        let state = states.of(&reached.entry);
        Arc::new(Self { reached, state })
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.reached.entry
    }

    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.reached.sandbox
    }

    pub(super) fn state(&self) -> &SandboxState {
        &self.state
    }

    /// What the request asked for has begun: a pause need not wait for it any longer.
    pub(super) fn has_begun(&self) {
        self.reached.has_begun();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::record::tests::example;

    #[test]
    fn a_state_lasts_as_long_as_its_sandbox() {
        let states = SandboxStates::default();
        let entry = |number: u32| Entry::new(example(&format!("sandbox{number:05}")));
        let (first, second) = (entry(1), entry(2));
        let state = states.of(&first);
        assert!(Arc::ptr_eq(&states.of(&first), &state));
        assert!(!Arc::ptr_eq(&states.of(&second), &state));
        drop((first, second));
        let third = entry(3);
        states.of(&third);
        assert_eq!(states.0.lock().unwrap().len(), 1, "states of removed sandboxes are dropped");
    }
}
