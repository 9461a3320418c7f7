//! Paths as E2B's clients state them: from the root, from the user's home, or with a tilde for that.

use super::{
    connect::{Call, ConnectError, text},
    homes::Home,
};
use sandboxvm_manager::FilePath;

/// The home of the call's user, which its sandbox is asked for once: users do not move.
pub(super) async fn home(call: &Call) -> Result<Home, ConnectError> {
    let homes = &call.state().homes;
    if let Some(home) = homes.of(&call.user) {
        return Ok(home);
    }
    let entry = call.files().stat(path(".")?, true).await?;
    let is_own = entry.owner.as_bytes() == call.user.as_bytes();
    let home = Home { path: text(&entry.path), group: is_own.then_some(entry.gid) };
    homes.add(&call.user, &home);
    Ok(home)
}

/// A path for the agent, which takes one that does not begin at the root from the user's home.
pub(super) fn path(text: &str) -> Result<FilePath, ConnectError> {
    let text = match text {
        "" => ".",
        text if text.starts_with('~') => below_home(text)?,
        text => text,
    };
    FilePath::try_from(text).map_err(|error| ConnectError::invalid(error.to_string()))
}

/// What is below the user's home, of a path that does not begin at the root.
pub(super) fn below_home(text: &str) -> Result<&str, ConnectError> {
    match text.strip_prefix('~') {
        None => Ok(text),
        Some("" | "/") => Ok("."),
        Some(rest) => rest
            .strip_prefix('/')
            .map(|rest| rest.trim_start_matches('/'))
            .map(|rest| if rest.is_empty() { "." } else { rest })
            .ok_or_else(|| ConnectError::invalid("the home of another user cannot be named by ~; use its path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_at_the_root_or_at_home() {
        let of = |text| path(text).map(|path| String::from_utf8(path.as_bytes().to_vec()).unwrap());
        for (text, expected) in [
            ("/etc/x", "/etc/x"),
            ("x/y", "x/y"),
            ("", "."),
            ("~", "."),
            ("~/", "."),
            ("~/x", "x"),
            ("~//etc/passwd", "etc/passwd"),
            ("a~b", "a~b"),
        ] {
            assert_eq!(of(text), Ok(expected.to_owned()), "{text}");
        }
        assert!(of("~root/x").is_err() && of("a\0b").is_err() && of(&"x".repeat(5000)).is_err());
    }
}
