//! What is remembered of a sandbox's processes: how they were described, and the way to their input. The agent knows which
//! there are; this only adds to it, is bounded, and may forget.

use super::{config::ProcessConfig, input::Input};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most processes of one sandbox that anything is remembered of.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Processes(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_pid: BTreeMap<u32, Remembered>,
    /// Counts what was ever remembered.
    clock: u64,
}

#[derive(Debug)]
struct Remembered {
    since: u64,
    /// Of one that was started here.
    description: Option<(ProcessConfig, Option<String>)>,
    input: Arc<Input>,
}

/// A moment, as the table counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u64);

impl Processes {
    /// A process was started here; whatever had its PID before is no more.
    pub(super) fn add(&self, pid: u32, config: ProcessConfig, tag: Option<String>, input: Input) -> Arc<Input> {
        self.lock().put(pid, Some((config, tag)), input)
    }

    /// The way to a process's input; a new one for a process of which nothing is known.
    pub(super) fn input(&self, pid: u32) -> Arc<Input> {
        let mut table = self.lock();
        match table.by_pid.get(&pid) {
            Some(remembered) => Arc::clone(&remembered.input),
            None => table.put(pid, None, Input::unknown()),
        }
    }

    /// The process with this way to its input has ended.
    pub(super) fn remove(&self, pid: u32, input: &Arc<Input>) {
        let mut table = self.lock();
        if table.by_pid.get(&pid).is_some_and(|remembered| Arc::ptr_eq(&remembered.input, input)) {
            table.by_pid.remove(&pid);
        }
    }

    /// The youngest process that was started with this tag.
    pub(super) fn tagged(&self, tag: &str) -> Option<u32> {
        let table = self.lock();
        let has_tag = |remembered: &Remembered| {
            remembered.description.as_ref().is_some_and(|(_, own)| own.as_deref() == Some(tag))
        };
        let tagged = table.by_pid.iter().filter(|(_, remembered)| has_tag(remembered));
        tagged.max_by_key(|(_, remembered)| remembered.since).map(|(pid, _)| *pid)
    }

    /// How the process of this PID was described, if it is the one that the agent shows.
    pub(super) fn describe(&self, pid: u32, argv: &[String]) -> Option<(ProcessConfig, Option<String>)> {
        let table = self.lock();
        let description = table.by_pid.get(&pid)?.description.as_ref()?;
        description.0.is_shown_as(argv).then(|| description.clone())
    }

    /// Now.
    pub(super) fn now(&self) -> Moment {
        Moment(self.lock().clock)
    }

    /// Forgets all that were there at that moment and do not run.
    pub(super) fn retain(&self, at: Moment, runs: impl Fn(u32) -> bool) {
        self.lock().by_pid.retain(|pid, remembered| remembered.since > at.0 || runs(*pid));
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn put(&mut self, pid: u32, description: Option<(ProcessConfig, Option<String>)>, input: Input) -> Arc<Input> {
        let input = Arc::new(input);
        self.clock += 1;
        let remembered = Remembered { since: self.clock, description, input: Arc::clone(&input) };
        self.by_pid.insert(pid, remembered);
        if self.by_pid.len() > MOST {
            let oldest = self.by_pid.iter().min_by_key(|(_, remembered)| remembered.since).map(|(pid, _)| *pid);
            oldest.map(|pid| self.by_pid.remove(&pid));
        }
        input
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cmd: &str) -> ProcessConfig {
        ProcessConfig { cmd: cmd.into(), ..ProcessConfig::default() }
    }

    #[test]
    fn descriptions_of_processes_are_remembered() {
        let processes = Processes::default();
        processes.add(7, config("a"), Some("x".into()), Input::none());
        let second = processes.add(8, config("b"), Some("x".into()), Input::none());
        assert_eq!((processes.tagged("x"), processes.tagged("y")), (Some(8), None));
        assert_eq!(processes.describe(7, &["a".into()]), Some((config("a"), Some("x".into()))));
        assert_eq!(processes.describe(7, &["other".into()]), None, "its PID belongs to another now");
        processes.remove(7, &second);
        processes.remove(8, &second);
        assert_eq!(processes.tagged("x"), Some(7));
    }

    #[test]
    fn ended_processes_are_forgotten_unless_younger_than_the_list() {
        let processes = Processes::default();
        processes.add(7, config("a"), None, Input::none());
        let listed = processes.now();
        processes.add(8, config("b"), Some("x".into()), Input::none());
        processes.retain(listed, |_| false);
        assert_eq!((processes.describe(7, &["a".into()]), processes.tagged("x")), (None, Some(8)));
    }

    #[test]
    fn memory_is_bounded() {
        let processes = Processes::default();
        for pid in 0..3000 {
            processes.add(pid, config("a"), None, Input::none());
        }
        assert_eq!(processes.lock().by_pid.len(), MOST);
        assert!(processes.describe(2999, &["a".into()]).is_some());
    }
}
