//! What all flows of a sandbox share: the link to the guest, the state of its decisions, the dialer and the resolver.

use crate::{dialing::Dialing, resolver::Resolver, session::Session, stack::link::Link};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// What all flows share.
#[derive(Debug)]
pub struct Shared {
    /// The link to the guest.
    pub link: Rc<Link>,
    /// The state of the sandbox's decisions.
    pub session: Rc<RefCell<Session>>,
    /// The dialer.
    pub dialing: Rc<Dialing>,
    /// The resolver.
    pub resolver: Resolver,
    /// Number of flows.
    pub open: Cell<usize>,
    questions: Rc<Cell<usize>>,
}

impl Shared {
    /// Returns what flows share before there is any.
    #[must_use]
    pub fn new(link: Rc<Link>, session: Rc<RefCell<Session>>, dialing: Rc<Dialing>) -> Self {
        let resolver = Resolver::new(Rc::clone(&dialing), Rc::clone(&session));
        Self { link, session, dialing, resolver, open: Cell::new(0), questions: Rc::default() }
    }

    /// Takes one of `max` places for questions without an answer.
    #[must_use]
    pub fn slot(&self, max: usize) -> Option<Slot> {
        let taken = self.questions.get();
        (taken < max).then(|| {
            self.questions.set(taken + 1);
            Slot(Rc::clone(&self.questions))
        })
    }
}

/// A place that is free again when this is dropped.
#[derive(Debug)]
pub struct Slot(Rc<Cell<usize>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
