//! The tasks of one connection: its HTTP/2 streams. They run on the process's only thread, and end with the connection,
//! also when a change of the settings cuts it.

use hyper::rt::Executor;
use std::{
    cell::RefCell,
    future::Future,
    rc::{Rc, Weak},
};
use tokio::task::JoinSet;

/// Owns the tasks. They end when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Tasks(Rc<RefCell<JoinSet<()>>>);

/// Starts tasks. It does not keep them alive, as a task itself can have one.
#[derive(Debug, Clone)]
pub(super) struct Starter(Weak<RefCell<JoinSet<()>>>);

impl Tasks {
    pub(super) fn starter(&self) -> Starter {
        Starter(Rc::downgrade(&self.0))
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Starter {
    fn execute(&self, future: F) {
        let Some(tasks) = self.0.upgrade() else { return };
        let mut tasks = tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(future);
    }
}
