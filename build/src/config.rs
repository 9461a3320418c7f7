//! What the instructions of a stage make of an image's configuration. May not interpret users or
//! paths: they are those of the guest.

use std::collections::BTreeMap;

/// How an image's program is started. An empty list or text means that the image states none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// User, and after a colon the group, by name or number.
    pub user: String,
    /// Environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Directory in which the program starts.
    pub working_dir: String,
    /// Program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program if there is no entrypoint.
    pub cmd: Vec<String>,
    /// Signal that asks the program to end.
    pub stop_signal: String,
    /// Directories that are meant to outlive the container.
    pub volumes: Vec<String>,
    /// Ports that the program listens on, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `["NONE"]`, `["CMD", program, ...]` or `["CMD-SHELL", command]`. Empty: none.
    pub healthcheck: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Program of the shell form. Empty: `/bin/sh -c`.
    pub shell: Vec<String>,
    /// Triggers for images built on this one. The plan refuses a base image that has any.
    pub on_build: Vec<String>,
}

impl ImageConfig {
    /// Sets a variable of the environment.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let line = format!("{name}={value}");
        match self.env.iter_mut().find(|entry| entry.split('=').next() == Some(name)) {
            Some(entry) => *entry = line,
            None => self.env.push(line),
        }
    }

    /// Returns a variable of the environment.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
    }

    /// Returns the program of the shell form.
    #[must_use]
    pub fn shell(&self) -> Vec<String> {
        if self.shell.is_empty() { vec!["/bin/sh".into(), "-c".into()] } else { self.shell.clone() }
    }
}

/// Adds `item` to a set that keeps its order.
pub(crate) fn insert(set: &mut Vec<String>, item: String) {
    if !set.contains(&item) {
        set.push(item);
    }
}
