//! What envd knows of each sandbox's processes and directories beyond what the agent knows. It is kept here by sandbox ID, not
//! in the registry. It ends with the front, and is dropped some time after its sandbox was removed.

use super::{filesystem::watchers::Watchers, homes::Homes, process::table::Processes};
use crate::channel::{client::Launcher, reached::Reached, request::Request};
use sandboxvm_manager::{RemoteSandbox, SandboxId};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Number of states below which none is dropped.
const FEW: usize = 64;

/// The state of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct SandboxState {
    pub(super) processes: Processes,
    pub(super) watchers: Watchers,
    pub(super) homes: Homes,
}

/// The states of all sandboxes that envd was asked for.
#[derive(Debug, Default)]
pub(crate) struct SandboxStates(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    states: HashMap<SandboxId, Arc<SandboxState>>,
    /// How many were left when those of removed sandboxes were dropped last.
    left: usize,
    is_swept: bool,
}

impl SandboxStates {
    /// The state of a sandbox, a new one on the first request to it. Once there are twice as many as were left the last time,
    /// those of removed sandboxes are dropped.
    pub(crate) fn of(&self, id: &SandboxId, launcher: &Launcher) -> Arc<SandboxState> {
        let mut known = lock(&self.0);
        let state = Arc::clone(known.states.entry(id.clone()).or_default());
        if !known.is_swept && known.states.len() > (2 * known.left).max(FEW) {
            known.is_swept = true;
            let ids: Vec<SandboxId> = known.states.keys().cloned().collect();
            tokio::spawn(sweep(Arc::clone(&self.0), ids, launcher.clone()));
        }
        state
    }
}

/// Drops those of `asked` that are not there any more. IDs are never used again.
async fn sweep(states: Arc<Mutex<Known>>, asked: Vec<SandboxId>, launcher: Launcher) {
    let there: Result<HashSet<SandboxId>, _> = launcher.ask(Request::Known { ids: asked.clone() }).await;
    let mut known = lock(&states);
    if let Ok(there) = there {
        known.drop_gone(&asked, &there);
    }
    known.is_swept = false;
}

impl Known {
    fn drop_gone(&mut self, asked: &[SandboxId], there: &HashSet<SandboxId>) {
        for id in asked.iter().filter(|id| !there.contains(*id)) {
            self.states.remove(id);
        }
        self.left = self.states.len();
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(crate) fn new(reached: Reached, states: &SandboxStates, launcher: &Launcher) -> SharedTarget {
        let state = states.of(&reached.id, launcher);
        Arc::new(Self { reached, state })
    }

    /// Whose commands and files these are unless a request says otherwise.
    pub(super) fn user(&self) -> &str {
        &self.reached.facts.user
    }

    /// Where this user's processes start unless a request says otherwise; `None` in most sandboxes: in the user's home.
    pub(super) fn workdir(&self) -> Option<&str> {
        self.reached.facts.workdir.as_deref()
    }

    pub(super) fn sandbox(&self) -> &RemoteSandbox {
        &self.reached.sandbox
    }

    /// The handle of the sandbox, for requests to the launcher.
    pub(super) fn handle(&self) -> u64 {
        self.reached.handle()
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

    #[test]
    fn a_state_lasts_as_long_as_its_sandbox() {
        let id = |number: u32| SandboxId::try_from(format!("sandbox{number:05}")).unwrap();
        let mut known = Known::default();
        for number in 0..3 {
            known.states.insert(id(number), Arc::default());
        }
        // The third came after the launcher was asked.
        known.drop_gone(&[id(0), id(1)], &HashSet::from([id(1)]));
        assert!(!known.states.contains_key(&id(0)), "states of removed sandboxes are dropped");
        assert!(known.states.contains_key(&id(1)) && known.states.contains_key(&id(2)) && known.left == 2);
    }
}
