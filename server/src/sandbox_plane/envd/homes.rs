//! The home directories of one sandbox's users, as far as they are known.

use sandboxvm_manager::CText;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Maximum number of users of one sandbox whose homes are remembered.
const MOST: usize = 64;

/// The homes that are known.
#[derive(Debug, Default)]
pub(crate) struct Homes(Mutex<HashMap<CText, Home>>);

/// The home of one user.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pub(super) path: String,
    /// The user's group, as far as the home says so.
    pub(super) group: Option<u32>,
}

impl Homes {
    pub(super) fn of(&self, user: &CText) -> Option<Home> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(user).cloned()
    }

    /// Remembers one, where there is room.
    pub(super) fn add(&self, user: &CText, home: &Home) {
        let mut homes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if homes.len() < MOST {
            homes.insert(user.clone(), home.clone());
        }
    }
}
