//! Which stages a target needs, and what each of them begins with.

use super::{Base, BuildArgs};
use crate::dockerfile::{Copy, Dockerfile, DockerfileError, Instruction, Mount, expand};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of bytes that the values of the `ARG` before the first `FROM` have together. Each stage
/// looks at all of them.
const MAX_GLOBALS: usize = 1 << 20;

pub(super) fn fail(file: &Dockerfile, line: usize, message: impl ToString) -> DockerfileError {
    DockerfileError { file: file.file.clone(), line, message: message.to_string() }
}

/// Returns the value of each `ARG` before the first `FROM`.
pub(super) fn globals(file: &Dockerfile, args: &BuildArgs) -> Result<BTreeMap<String, String>, DockerfileError> {
    let mut values = BTreeMap::new();
    let mut total = 0_usize;
    for (name, default) in &file.global_args {
        let given = match (args.get(name), default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(word)) => {
                Some(expand(word, file.escape, &|name| values.get(name).cloned()).map_err(|e| fail(file, 1, e))?)
            }
            (None, None) => None,
        };
        total = total.saturating_add(given.as_ref().map_or(0, String::len));
        if total > MAX_GLOBALS {
            let maximum = MAX_GLOBALS >> 20;
            return Err(fail(file, 1, format!("the values of ARG before FROM have more than {maximum} MiB")));
        }
        values.extend(given.map(|value| (name.clone(), value)));
    }
    Ok(values)
}

/// Returns what a stage begins with.
///
/// # Errors
/// Fails if a variable cannot be expanded or the platform is not linux/amd64.
pub fn base(file: &Dockerfile, stage: usize, args: &BuildArgs) -> Result<Base, DockerfileError> {
    let globals = globals(file, args)?;
    let platform = |name: &str| match name {
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some("linux/amd64".to_owned()),
        "TARGETARCH" | "BUILDARCH" => Some("amd64".to_owned()),
        "TARGETOS" | "BUILDOS" => Some("linux".to_owned()),
        _ => None,
    };
    let lookup = |name: &str| globals.get(name).cloned().or_else(|| platform(name));
    let from = &file.stages[stage];
    let word = |word: &str| expand(word, file.escape, &lookup).map_err(|error| fail(file, from.line, error));
    if let Some(stated) = &from.platform {
        let stated = word(stated)?;
        if !matches!(stated.as_str(), "linux/amd64" | "linux/x86_64") {
            return Err(fail(file, from.line, format!("platform {stated:?} is not supported: expected linux/amd64")));
        }
    }
    let name = word(&from.base)?;
    if name.is_empty() {
        return Err(fail(file, from.line, format!("FROM {} names no image", from.base)));
    }
    Ok(if name == "scratch" { Base::Scratch } else { find(file, stage, &name) })
}

/// Finds a stage before `before` by its name, or takes the name for an image.
fn find(file: &Dockerfile, before: usize, name: &str) -> Base {
    let lower = name.to_ascii_lowercase();
    let stage = file.stages[..before].iter().rposition(|stage| stage.name.as_deref() == Some(&lower));
    stage.map_or_else(|| Base::Image(name.to_owned()), Base::Stage)
}

/// Finds a stage by name or number, or takes the name for an image.
pub(super) fn find_from(file: &Dockerfile, before: usize, name: &str) -> Base {
    match name.parse::<usize>() {
        Ok(index) if index < before => Base::Stage(index),
        _ => find(file, before, name),
    }
}

/// Returns the stages that `target` needs, itself included, in the order in which they are built.
/// Without a target it is the last stage.
///
/// # Errors
/// Fails if there is no such stage.
pub fn needed(file: &Dockerfile, target: Option<&str>, args: &BuildArgs) -> Result<Vec<usize>, DockerfileError> {
    let last = match target {
        None => file.stages.len() - 1,
        Some(name) => match find_from(file, file.stages.len(), name) {
            Base::Stage(index) => index,
            _ => return Err(fail(file, 0, format!("there is no stage {name:?}"))),
        },
    };
    let mut needed = BTreeSet::new();
    let mut open = vec![last];
    while let Some(index) = open.pop() {
        if !needed.insert(index) {
            continue;
        }
        let mut add = |base| {
            if let Base::Stage(inner) = base {
                open.push(inner);
            }
        };
        add(base(file, index, args)?);
        for located in &file.stages[index].instructions {
            match &located.instruction {
                Instruction::Copy(Copy { from: Some(name), .. }) => add(find_from(file, index, name)),
                Instruction::Run(run) => {
                    run.mounts.iter().filter_map(dockerfile_from).for_each(|name| add(find_from(file, index, name)));
                }
                _ => {}
            }
        }
    }
    // A stage only names stages before it, so the order of the file is an order of building.
    Ok(needed.into_iter().collect())
}

/// Returns the stage or image that a mount takes files from.
fn dockerfile_from(mount: &Mount) -> Option<&str> {
    match mount {
        Mount::Bind { from, .. } => from.as_deref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stages_of_the_target_are_built() {
        let text = "ARG V=1\nFROM a:$V AS one\nFROM one AS two\nFROM b AS three\nFROM scratch\nCOPY --from=two /x /\nCOPY --from=2 / /\n";
        let file = Dockerfile::parse("D", text).unwrap();
        let args = BuildArgs::from([("V".into(), "9".into())]);
        assert_eq!(needed(&file, None, &args).unwrap(), [0, 1, 2, 3]);
        assert_eq!(needed(&file, Some("Two"), &args).unwrap(), [0, 1]);
        assert_eq!(base(&file, 0, &args).unwrap(), Base::Image("a:9".into()));
        assert!(needed(&file, Some("x"), &args).is_err());
    }
}
