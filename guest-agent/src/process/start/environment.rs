//! The environment of a process: the agent's defaults, overridden by the request.

use super::strings::CStrings;
use crate::process::user::User;
use sandboxvm_protocol::agent::CText;

/// PATH, if the request sets none.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What systemd and other programs recognise a container by, as `container` in the environment.
const CONTAINER: &[u8] = b"sandboxvm";

/// An entry of the request is not a variable.
#[derive(Debug, thiserror::Error)]
#[error("exec: environment entry {index} is not KEY=VALUE")]
pub(crate) struct EnvironmentError {
    index: usize,
}

/// A complete environment. Each name occurs once.
#[derive(Debug)]
pub(super) struct Environment<'a> {
    /// Name and value, ordered by name.
    variables: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Environment<'a> {
    /// Returns the defaults for `user`, overridden by `requested`. Of several entries with one
    /// name, the last counts. `contained` says whether the process is an init system, or beside one.
    pub(super) fn new(
        requested: &'a [CText],
        user: &'a User,
        terminal: bool,
        contained: bool,
    ) -> Result<Self, EnvironmentError> {
        let mut variables: Vec<(&[u8], &[u8])> = Vec::with_capacity(requested.len() + 8);
        variables.extend([
            (&b"PATH"[..], DEFAULT_PATH),
            (b"HOME", &user.home),
            (b"USER", &user.name),
            (b"LOGNAME", &user.name),
            (b"SHELL", &user.shell),
            (b"LANG", b"C.UTF-8"),
        ]);
        if terminal {
            variables.push((b"TERM", b"xterm-256color"));
        }
        if contained {
            variables.push((b"container", CONTAINER));
        }
        for (index, entry) in requested.iter().enumerate() {
            let entry = entry.as_bytes();
            let at = entry.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
            let at = at.ok_or(EnvironmentError { index })?;
            variables.push((&entry[..at], &entry[at + 1..]));
        }
        // The sort is stable, so the last entry of equal names stays the last, and is then the only
        // one that is kept.
        variables.sort_by_key(|(name, _)| *name);
        variables.reverse();
        variables.dedup_by_key(|(name, _)| *name);
        Ok(Self { variables })
    }

    /// Returns the value of `name`.
    pub(super) fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.variables.iter().find(|(candidate, _)| *candidate == name).map(|(_, value)| *value)
    }

    /// Returns the entries as `NAME=VALUE` strings.
    pub(super) fn to_strings(&self) -> CStrings {
        let total = self.variables.iter().map(|(name, value)| name.len() + 1 + value.len()).sum();
        let mut strings = CStrings::with_capacity(self.variables.len(), total);
        for (name, value) in &self.variables {
            strings.push(&[name, b"=", value]);
        }
        strings
    }
}

#[cfg(test)]
mod tests {
    use super::{CONTAINER, CText, Environment, User};

    fn texts(entries: &[&str]) -> Vec<CText> {
        entries.iter().map(|entry| CText::try_from(*entry).unwrap()).collect()
    }

    #[test]
    fn the_request_overrides_defaults_and_its_last_entry_counts() {
        let user = User::root();
        let requested = texts(&["A=1", "HOME=/elsewhere", "A=2=3", "EMPTY="]);
        let environment = Environment::new(&requested, &user, false, true).unwrap();
        assert_eq!(environment.get(b"A"), Some(&b"2=3"[..]));
        assert_eq!(environment.get(b"HOME"), Some(&b"/elsewhere"[..]));
        assert_eq!(environment.get(b"EMPTY"), Some(&b""[..]));
        assert_eq!(environment.get(b"USER"), Some(&b"root"[..]));
        assert_eq!(environment.get(b"TERM"), None);
        assert_eq!(environment.get(b"container"), Some(CONTAINER));
        let strings = environment.to_strings();
        let all: Vec<_> = (0..strings.len()).filter_map(|index| strings.get(index)).collect();
        assert_eq!(all.iter().filter(|entry| entry.to_bytes().starts_with(b"A=")).count(), 1);
        assert!(all.contains(&c"A=2=3"));
    }

    #[test]
    fn an_entry_without_a_name_is_refused() {
        let user = User::root();
        for bad in ["novalue", "=x", ""] {
            assert!(Environment::new(&texts(&["OK=1", bad]), &user, false, false).is_err(), "{bad:?}");
        }
    }
}
