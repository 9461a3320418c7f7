//! Who a process runs as: `name`, `uid`, `name:group`, `uid:gid`, looked up in the guest's own files.
//!
//! Root, the default, is looked up nowhere: the agent is root already, so such a process costs no call at all.
//! The files are the guest's and therefore hostile: they must be regular, are read up to a cap, and bad lines are
//! passed over.

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, read};
use std::collections::BTreeMap;
use std::str::FromStr;

/// More of a file is not read.
const LARGEST_FILE: usize = 1 << 20;

/// Most supplementary groups (Linux `NGROUPS_MAX`).
const MOST_GROUPS: usize = 65536;

/// A user that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// Not in the guest.
    #[error("the sandbox has no user {0:?}; name one of its /etc/passwd, or a number")]
    NoUser(String),
    /// Not in the guest.
    #[error("the sandbox has no group {0:?}; name one of its /etc/group, or a number")]
    NoGroup(String),
    /// A file that cannot be read.
    #[error("cannot read the sandbox's {file}: {errno}")]
    File {
        /// Which.
        file: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// Numbers to change to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    /// User.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
}

/// A user and what its environment is made of.
#[derive(Debug)]
pub(crate) struct User {
    /// What to change to; nothing for the agent's own root.
    pub(crate) ids: Option<Ids>,
    /// Login name, or the number of a user without one.
    pub(super) name: Vec<u8>,
    /// Home directory.
    pub(crate) home: Vec<u8>,
    /// Login shell.
    pub(super) shell: Vec<u8>,
}

impl User {
    /// The default: what the agent itself is.
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
            ids: Some(Ids { uid: account.uid, gid, groups }),
            name: account.name.to_vec(),
            home: or(account.home, b"/"),
            shell: or(account.shell, b"/bin/sh"),
        })
    }
}

/// Names of users or groups by their number.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<u32, String>);

impl Names {
    /// Those of `/etc/passwd`; none where that cannot be read.
    pub(crate) fn of_users() -> Self {
        let file = read_file("/etc/passwd").unwrap_or_default();
        let accounts = lines(&file).filter_map(Account::parse);
        Self::first_of_each(accounts.map(|account| (account.uid, account.name)))
    }

    /// Those of `/etc/group`.
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

    /// The name, or the number again.
    pub(crate) fn get(&self, number: u32) -> String {
        self.0.get(&number).cloned().unwrap_or_else(|| number.to_string())
    }
}

/// One line of passwd(5).
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
        // Both go into the environment, which ends at a NUL.
        let is_text = |field: &[u8]| !field.contains(&0);
        (is_text(name) && is_text(home) && is_text(shell)).then_some(Self { name, uid, gid, home, shell })
    }
}

/// Name, number and members of each line of group(5).
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

/// A user or group number; all ones means "no change" to the kernel and is none.
fn number(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    u32::from_str(digits).ok().filter(|number| *number != u32::MAX)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(256).collect()
}

/// Reads a regular file. Opened without blocking: a FIFO in its place must not stop PID 1.
fn read_file(file: &'static str) -> Result<Vec<u8>, UserError> {
    let fail = |errno| UserError::File { file, errno };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match open(file, flags, Mode::empty()) {
        // Numbers need no file.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        opened => opened.map_err(fail)?,
    };
    let about = fstat(&fd).map_err(fail)?;
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
        return Err(fail(Errno::INVAL));
    }
    let size = usize::try_from(about.st_size).unwrap_or(0).min(LARGEST_FILE);
    // One byte more: a short read then says that this was all.
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
    fn a_name_brings_its_groups_home_and_shell() {
        let user = find("user").unwrap();
        assert_eq!(user.ids, Some(Ids { uid: 1000, gid: 1001, groups: vec![50, 44] }));
        assert_eq!((&user.home[..], &user.shell[..]), (&b"/home/user"[..], &b"/bin/zsh"[..]));
    }

    #[test]
    fn a_number_finds_its_account_but_a_name_goes_first() {
        assert_eq!(find("1000").unwrap().name, b"user");
        assert_eq!(find("1234").unwrap().ids.unwrap().uid, 77);
        let stranger = find("4242").unwrap();
        assert_eq!(stranger.ids, Some(Ids { uid: 4242, gid: 0, groups: vec![] }));
        assert_eq!(stranger.home, b"/");
    }

    #[test]
    fn an_explicit_group_replaces_all_groups() {
        assert_eq!(find("user:staff").unwrap().ids, Some(Ids { uid: 1000, gid: 50, groups: vec![] }));
        assert_eq!(find("5:7").unwrap().ids, Some(Ids { uid: 5, gid: 7, groups: vec![] }));
    }

    #[test]
    fn what_is_not_there_is_refused() {
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
