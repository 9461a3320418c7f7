//! Users of a machine: makes one that is missing, by writing the files that list users. No program of
//! the image is needed. The files are hostile: their size is limited, and a line that is not understood
//! is kept as it is.

use crate::engine::{Machine, Owner, StepProblem};
use sandboxvm_archive::{Entry, Kind, Timestamp, Writer};

/// Maximum size in bytes of a file that lists users or groups.
const MAX_FILE: usize = 4 << 20;
/// First number for new users and groups.
const FIRST: u32 = 1000;

/// Makes a user with a home, a group of the same name and no password, unless it exists. With `sudo`,
/// it may become root without a password where the machine has sudo.
pub(super) async fn ensure<M: Machine>(machine: &mut M, name: &str, sudo: bool) -> Result<(), StepProblem> {
    let users = text(machine, "/etc/passwd").await?;
    let is_known = name == "root" || name.parse::<u32>().is_ok() || line(&users, name).is_some();
    let mut files = Vec::new();
    let mut home = None;
    if !is_known {
        let groups = text(machine, "/etc/group").await?;
        let number = |line: &str| line.split(':').nth(2).and_then(|field| field.parse::<u32>().ok());
        let taken: Vec<u32> = users.lines().chain(groups.lines()).filter_map(number).collect();
        let free = (FIRST..60_000).find(|number| !taken.contains(number));
        let uid = free.ok_or_else(|| StepProblem::Unsupported("another user: all numbers are taken, which".into()))?;
        let gid = line(&groups, name).and_then(number);
        files.push((
            "etc/passwd",
            0o644,
            with_line(&users, &format!("{name}:*:{uid}:{}::/home/{name}:/bin/bash", gid.unwrap_or(uid))),
        ));
        if gid.is_none() {
            files.push(("etc/group", 0o644, with_line(&groups, &format!("{name}:x:{uid}:"))));
        }
        home = Some(Owner { uid, gid: gid.unwrap_or(uid) });
    }
    let rule = format!("etc/sudoers.d/{name}");
    if sudo && machine.find("/usr/bin/sudo").await?.is_some() && !name.contains('.') {
        files.push((rule.as_str(), 0o440, format!("{name} ALL=(ALL:ALL) NOPASSWD: ALL\n")));
        machine.make_directory("/etc/sudoers.d", Owner::default()).await?;
    }
    if !files.is_empty() {
        let mut writer = Writer::new(Vec::new());
        for (path, mode, content) in files {
            let (path, modified) = (path.as_bytes().to_vec(), Timestamp::default());
            let kind = Kind::File { size: content.len() as u64, extents: None };
            writer.begin(&Entry { path, kind, mode, uid: 0, gid: 0, modified, attributes: Vec::new() })?;
            writer.content(content.as_bytes())?;
            writer.end()?;
        }
        let archive = writer.finish()?;
        machine.extract(&mut &archive[..]).await?;
    }
    if let Some(owner) = home {
        machine.make_directory(&format!("/home/{name}"), owner).await?;
    }
    Ok(())
}

/// Returns the home of a user, which is `/` for one that has none.
pub(super) async fn home<M: Machine>(machine: &mut M, user: &str) -> Result<String, StepProblem> {
    let user = user.split(':').next().unwrap_or_default();
    let users = text(machine, "/etc/passwd").await?;
    let by_number = |line: &&str| line.split(':').nth(2) == Some(user);
    let found = line(&users, user).or_else(|| users.lines().find(by_number));
    let home = found.and_then(|line| line.split(':').nth(5)).filter(|home| home.starts_with('/'));
    Ok(home.unwrap_or(if user == "root" { "/root" } else { "/" }).to_owned())
}

fn line<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find(|line| line.split(':').next() == Some(name))
}

fn with_line(text: &str, line: &str) -> String {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}{line}\n")
}

async fn text<M: Machine>(machine: &mut M, path: &str) -> Result<String, StepProblem> {
    let bytes = machine.read(path, MAX_FILE).await?.unwrap_or_default();
    // Other bytes than those of UTF-8 would be changed by writing the file again.
    String::from_utf8(bytes).map_err(|_| StepProblem::Unsupported(format!("an image whose {path} is not UTF-8")))
}
