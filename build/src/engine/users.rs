//! Users and groups by name, as the files of a machine list them. The files are hostile: their size
//! is limited, and a line that is not understood is skipped.

use super::{
    error::StepProblem,
    machine::{Disk, Owner},
};

/// Maximum size in bytes of a file that lists users or groups.
const MAX_FILE: usize = 4 << 20;

/// Which group a user without one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoGroup {
    /// Of a user by number, the group with that number, as `--chown` has it.
    SameNumber,
    /// The group that the user belongs to.
    Primary,
}

/// Returns the numbers of `user`, `user:group` or empty text for root.
pub(crate) async fn owner<D: Disk>(machine: &mut D, text: &str, no_group: NoGroup) -> Result<Owner, StepProblem> {
    if text.is_empty() {
        return Ok(Owner::default());
    }
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let unknown = |kind, name: &str| StepProblem::Unknown { kind, name: name.to_owned() };
    let number = user.parse::<u32>().ok();
    let (uid, primary) = match (number, no_group, group) {
        // Root exists without the file.
        _ if user.is_empty() || user == "root" => (0, 0),
        (Some(number), NoGroup::SameNumber, _) | (Some(number), _, Some(_)) => (number, number),
        _ => {
            let users = lines(machine, "/etc/passwd").await?;
            let found = users.iter().find(|fields| match number {
                Some(number) => field(fields, 2) == Some(number),
                None => fields[0] == user,
            });
            match (found.and_then(|fields| Some((field(fields, 2)?, field(fields, 3)?))), number) {
                (Some(found), _) => found,
                (None, Some(number)) => (number, 0),
                (None, None) => return Err(unknown("user", user)),
            }
        }
    };
    let gid = match group {
        None => primary,
        Some("root") => 0,
        Some(group) => match group.parse() {
            Ok(number) => number,
            Err(_) => {
                let groups = lines(machine, "/etc/group").await?;
                let found = groups.iter().find(|fields| fields[0] == group).and_then(|fields| field(fields, 2));
                found.ok_or_else(|| unknown("group", group))?
            }
        },
    };
    Ok(Owner { uid, gid })
}

async fn lines<D: Disk>(machine: &mut D, path: &str) -> Result<Vec<Vec<String>>, StepProblem> {
    let bytes = machine.read(path, MAX_FILE).await?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect())
}

fn field(fields: &[String], at: usize) -> Option<u32> {
    fields.get(at)?.parse().ok()
}
