//! Finds the user of a process: `name`, `uid`, `name:group` or `uid:gid`, in the files of the
//! guest.
//!
//! Root, the default, is not looked up: the agent is root, so such a process costs no call. The
//! files belong to the guest and are hostile: they must be regular, are read up to a maximum size,
//! and invalid lines are skipped.

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, read};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Maximum number of bytes that are read of a file.
const LARGEST_FILE: usize = 1 << 20;

/// Maximum number of supplementary groups (Linux `NGROUPS_MAX`).
const MOST_GROUPS: usize = 65536;

/// Why a user cannot be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// The guest has no such user.
    #[error("the sandbox has no user {0:?}; name one of its /etc/passwd, or a number")]
    NoUser(String),
    /// The guest has no such group.
    #[error("the sandbox has no group {0:?}; name one of its /etc/group, or a number")]
    NoGroup(String),
    /// A file cannot be read.
    #[error("cannot read the sandbox's {file}: {errno}")]
    File {
        /// The file.
        file: &'static str,
        /// The error of the kernel.
        errno: Errno,
    },
}

/// The IDs of a user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    /// User ID.
    pub(crate) uid: u32,
    /// ID of the primary group.
    pub(crate) gid: u32,
    /// IDs of the supplementary groups, the primary group among them, as initgroups(3) and container engines set
    /// them: otherwise a set-group-ID program could shed a group to which a file denies access.
    pub(crate) groups: Vec<u32>,
}

/// A user, with the values for its environment.
#[derive(Debug)]
pub(crate) struct User {
    /// IDs to change to, or none for the agent's own root.
    pub(crate) ids: Option<Ids>,
    /// Login name, or the number of a user without a name.
    pub(super) name: Vec<u8>,
    /// Home directory.
    pub(crate) home: Vec<u8>,
    /// Login shell.
    pub(super) shell: Vec<u8>,
}

impl User {
    /// Returns root, the default and the user of the agent.
    pub(crate) fn root() -> Self {
        Self { ids: None, name: b"root".to_vec(), home: b"/root".to_vec(), shell: b"/bin/sh".to_vec() }
    }

    /// Looks `wanted` up in `/etc/passwd` and `/etc/group`.
    pub(crate) fn find(wanted: &[u8]) -> Result<Self, UserError> {
        Self::find_in(wanted, &read_file("/etc/passwd")?, || read_file("/etc/group"))
    }

    fn find_in(
        wanted: &[u8],
        passwd: &[u8],
        group_file: impl FnOnce() -> Result<Vec<u8>, UserError>,
    ) -> Result<Self, UserError> {
        let (wanted_user, wanted_group) = match wanted.iter().position(|byte| *byte == b':') {
            Some(at) => (&wanted[..at], Some(&wanted[at + 1..])),
            None => (wanted, None),
        };
        let no_user = || UserError::NoUser(text(wanted_user));
        let number = number(wanted_user);
        let entries = || lines(passwd).filter_map(Account::parse);
        let account = entries()
            .find(|account| account.name == wanted_user)
            .or_else(|| entries().find(|account| Some(account.uid) == number))
            .or_else(|| number.map(|uid| Account { name: wanted_user, uid, gid: 0, home: b"/", shell: b"/bin/sh" }))
            .ok_or_else(no_user)?;
        let groups = group_file()?;
        let (gid, groups) = match wanted_group {
            Some(wanted_group) => (find_group(wanted_group, &groups)?, Vec::new()),
            None => (account.gid, memberships(account.name, &groups)),
        };
        let or = |value: &[u8], default: &[u8]| if value.is_empty() { default.to_vec() } else { value.to_vec() };
        Ok(Self {
            ids: Some(Ids { uid: account.uid, gid, groups: with_primary(gid, groups) }),
            name: account.name.to_vec(),
            home: or(account.home, b"/"),
            shell: or(account.shell, b"/bin/sh"),
        })
    }
}

/// Names of users or groups by number.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<u32, String>);

impl Names {
    /// Returns the names in `/etc/passwd`, or none if it cannot be read.
    pub(crate) fn of_users() -> Self {
        let file = read_file("/etc/passwd").unwrap_or_default();
        let accounts = lines(&file).filter_map(Account::parse);
        Self::first_of_each(accounts.map(|account| (account.uid, account.name)))
    }

    /// Returns the names in `/etc/group`, or none if it cannot be read.
    pub(crate) fn of_groups() -> Self {
        let file = read_file("/etc/group").unwrap_or_default();
        Self::first_of_each(group_entries(&file).map(|(name, gid, _)| (gid, name)))
    }

    fn first_of_each<'a>(entries: impl Iterator<Item = (u32, &'a [u8])>) -> Self {
        let mut names = BTreeMap::new();
        for (number, name) in entries {
            names.entry(number).or_insert_with(|| text(name));
        }
        Self(names)
    }

    /// Returns the name, or the number as text.
    pub(crate) fn get(&self, number: u32) -> String {
        self.0.get(&number).cloned().unwrap_or_else(|| number.to_string())
    }
}

/// A line of passwd(5).
struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
    shell: &'a [u8],
}

impl<'a> Account<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let home = fields.nth(1)?;
        let shell = fields.next().unwrap_or_default();
        // Both become variables of the environment, which end at a NUL.
        let is_text = |field: &[u8]| !field.contains(&0);
        (is_text(name) && is_text(home) && is_text(shell)).then_some(Self { name, uid, gid, home, shell })
    }
}

/// Returns name, number and members of each line of group(5).
fn group_entries(groups: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    lines(groups).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn find_group(wanted: &[u8], groups: &[u8]) -> Result<u32, UserError> {
    group_entries(groups)
        .find(|(name, ..)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| number(wanted))
        .ok_or_else(|| UserError::NoGroup(text(wanted)))
}

fn with_primary(gid: u32, mut groups: Vec<u32>) -> Vec<u32> {
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    groups.truncate(MOST_GROUPS);
    groups
}

fn memberships(user: &[u8], groups: &[u8]) -> Vec<u32> {
    group_entries(groups)
        .filter(|(_, _, members)| members.split(|byte| *byte == b',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .take(MOST_GROUPS)
        .collect()
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n')
}

/// Parses a user or group number. All ones mean "no change" to the kernel, so that is not a number.
fn number(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    u32::from_str(digits).ok().filter(|number| *number != u32::MAX)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(256).collect()
}

/// Reads a regular file. Opens it without blocking, because a FIFO in its place must not block PID
/// 1.
fn read_file(file: &'static str) -> Result<Vec<u8>, UserError> {
    let fail = |errno| UserError::File { file, errno };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match open(file, flags, Mode::empty()) {
        // Numbers can be used without the file.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        opened => opened.map_err(fail)?,
    };
    let about = fstat(&fd).map_err(fail)?;
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
        return Err(fail(Errno::INVAL));
    }
    let size = usize::try_from(about.st_size).unwrap_or(0).min(LARGEST_FILE);
    // One byte more, so a short read shows that the file is complete.
    let mut content = vec![0; size + 1];
    let mut len = 0;
    while let Some(room) = content.get_mut(len..).filter(|room| !room.is_empty()) {
        let wanted = room.len();
        let count = read(&fd, room).map_err(fail)?;
        len += count;
        if count < wanted {
            break;
        }
    }
    content.truncate(len);
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::{Ids, User, UserError};

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        bad line\n\
        :x:5:5::/:\n\
        user:x:1000:1001:A User,,,:/home/user:/bin/zsh\n\
        1234:x:77:78::/number:\n\
        max:x:4294967295:0::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:user,other\n\nuser:x:1001:\nvideo:x:44:other,user\nuserx:x:9:userx\n";

    fn find(wanted: &str) -> Result<User, UserError> {
        User::find_in(wanted.as_bytes(), PASSWD, || Ok(GROUP.to_vec()))
    }

    #[test]
    fn a_user_has_the_groups_home_and_shell_of_its_name() {
        let user = find("user").unwrap();
        assert_eq!(user.ids, Some(Ids { uid: 1000, gid: 1001, groups: vec![1001, 50, 44] }));
        assert_eq!((&user.home[..], &user.shell[..]), (&b"/home/user"[..], &b"/bin/zsh"[..]));
    }

    #[test]
    fn a_number_finds_its_account_but_names_take_precedence() {
        assert_eq!(find("1000").unwrap().name, b"user");
        assert_eq!(find("1234").unwrap().ids.unwrap().uid, 77);
        let stranger = find("4242").unwrap();
        assert_eq!(stranger.ids, Some(Ids { uid: 4242, gid: 0, groups: vec![0] }));
        assert_eq!(stranger.home, b"/");
    }

    #[test]
    fn an_explicit_group_replaces_all_groups() {
        assert_eq!(find("user:staff").unwrap().ids, Some(Ids { uid: 1000, gid: 50, groups: vec![50] }));
        assert_eq!(find("5:7").unwrap().ids, Some(Ids { uid: 5, gid: 7, groups: vec![7] }));
    }

    #[test]
    fn unknown_users_and_groups_are_refused() {
        for (wanted, group) in
            [("nobody", false), ("", false), ("max", false), ("4294967295", false), ("user:none", true)]
        {
            match find(wanted) {
                Err(UserError::NoGroup(_)) => assert!(group, "{wanted}"),
                Err(UserError::NoUser(_)) => assert!(!group, "{wanted}"),
                other => panic!("{wanted}: {other:?}"),
            }
        }
    }
}
