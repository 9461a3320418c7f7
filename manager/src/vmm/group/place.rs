//! Finds the places where control groups can be made, from the two tables of the kernel: which
//! hierarchies are mounted, and where in them this process is (proc_pid_mountinfo(5), cgroups(7)).
//! May not make a group.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// A place where a control group can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
    /// The group above it, where that is mounted too; of version 2 alone.
    above: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Returns the places in version 1 hierarchies that have `controller`.
pub(crate) fn with_controller(controller: &str) -> Vec<Place> {
    let all = places_in(&read("/proc/self/mountinfo"), &own(), Some(controller));
    all.into_iter().filter(|place| place.version == Version::V1).collect()
}

/// Returns where a group can be made in version 2: below the caller's own group, and beside it, since
/// a group with processes can pass no controllers on. Not beside it where a VMM would leave what
/// bounds the caller.
pub(crate) fn unified() -> Vec<PathBuf> {
    let own = places_in(&read("/proc/self/mountinfo"), &own(), None);
    let places = own.into_iter().flat_map(|place| {
        let above = place.above.filter(|above| is_delegated(above) || may_be_left(&place.path));
        [Some(place.path), above]
    });
    places.flatten().collect()
}

/// True where systemd handed a group, with all below it, to the unit whose it is (`Delegate=`).
fn is_delegated(group: &Path) -> bool {
    // The latter since systemd 251; only root may read the former.
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 2];
        matches!(rustix::fs::getxattr(group, *name, &mut value), Ok(1)) && value[0] == b'1'
    })
}

/// True for a group that bounds nothing and is not a service. A service's VMMs stay below it: a service manager ends and
/// bounds a service by its group, and owns the group above.
fn may_be_left(group: &Path) -> bool {
    const BOUNDS: [&str; 3] = ["memory.max", "memory.high", "cpu.max"];
    let is_service = group.extension() == Some(OsStr::new("service"));
    // Where there is no such file the group has no such bound.
    let is_bound = |file: &&str| fs::read_to_string(group.join(file)).is_ok_and(|text| !text.starts_with("max"));
    !is_service && !BOUNDS.iter().any(is_bound)
}

/// Returns the path of the caller in the version 2 hierarchy.
pub(super) fn own_unified() -> Option<String> {
    own_path(&own(), Version::V2, None).map(str::to_owned)
}

fn own() -> String {
    read("/proc/self/cgroup")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns the places in version 2, and those in version 1 that have `controller`. A controller is
/// in one hierarchy only.
fn places_in(mounts: &str, own: &str, controller: Option<&str>) -> Vec<Place> {
    let mut places = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let ([_, _, _, root, at, ..], [kind, _, options, ..]) = (&left[..], &right[..]) else { continue };
        let has_it = controller.is_some_and(|wanted| options.split(',').any(|option| option == wanted));
        let version = match *kind {
            "cgroup2" => Version::V2,
            "cgroup" if has_it => Version::V1,
            _ => continue,
        };
        let Some(path) = own_path(own, version, controller) else { continue };
        // The mount may start further down in the hierarchy, as in a container.
        let Ok(below) = Path::new(path).strip_prefix(root) else { continue };
        let at = unescaped(at);
        let here = at.join(below);
        let above = (version == Version::V2 && here != at).then(|| here.parent().map(Path::to_owned)).flatten();
        places.push(Place { path: here, version, above });
    }
    places
}

fn own_path<'t>(table: &'t str, version: Version, controller: Option<&str>) -> Option<&'t str> {
    table.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match version {
            Version::V1 => controller.is_some_and(|wanted| controllers.split(',').any(|name| name == wanted)),
            Version::V2 => number == "0" && controllers.is_empty(),
        };
        is_it.then_some(path)
    })
}

/// Decodes a path in mountinfo, in which white space and backslashes are octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| std::str::from_utf8(after.get(..3)?).ok()).flatten();
        if let Some(byte) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_hierarchy_is_found_in_both_versions() {
        let v1 = "25 22 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                  26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
                  27 25 0:24 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";
        let paths = |mounts: &str, own: &str| {
            let all = places_in(mounts, own, Some("cpu")).into_iter();
            let text = |path: PathBuf| path.display().to_string();
            all.map(|place| (text(place.path), place.version, place.above.map(text))).collect::<Vec<_>>()
        };
        let own = "5:cpuset:/x\n4:cpu,cpuacct:/user/me\n0::/\n";
        assert_eq!(paths(v1, own), [("/sys/fs/cgroup/cpu,cpuacct/user/me".to_owned(), Version::V1, None)]);
        let v2 = "26 25 0:23 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let below_another = ("/sys/fs/cgroup/a/b".to_owned(), Version::V2, Some("/sys/fs/cgroup/a".to_owned()));
        assert_eq!(paths(v2, "0::/a/b\n"), [below_another]);
        assert_eq!(paths(v2, "0::/\n"), [("/sys/fs/cgroup/".to_owned(), Version::V2, None)]);
        // Only a part of the hierarchy is mounted: groups above it cannot be reached.
        let part = "26 25 0:23 /pod /with\\040space rw - cgroup2 cgroup2 rw\n";
        assert_eq!(paths(part, "0::/pod/me\n")[0].0, "/with space/me");
        assert!(paths(part, "0::/elsewhere\n").is_empty());
        assert!(paths("garbage\n1 2 - 3\n", "x\n::\n").is_empty());
    }

    #[test]
    fn empty_version_2_hierarchy_beside_version_1_is_found() {
        let mounts = "26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      27 25 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let places = places_in(mounts, "4:cpu:/x\n0::/\n", None);
        assert_eq!(places, [Place { path: "/sys/fs/cgroup/unified/".into(), version: Version::V2, above: None }]);
    }

    #[test]
    fn groups_that_bound_a_service_are_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let group = |name: &str, files: &[(&str, &str)]| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            files.iter().for_each(|(file, text)| fs::write(path.join(file), text).unwrap());
            path
        };
        let unbound = [("memory.max", "max\n"), ("memory.high", "max\n"), ("cpu.max", "max 100000\n")];
        assert!(may_be_left(&group("session-3.scope", &unbound)));
        assert!(may_be_left(&group("without-controllers", &[])));
        assert!(!may_be_left(&group("sandboxvm.service", &unbound)));
        assert!(!may_be_left(&group("memory", &[("memory.max", "1073741824\n")])));
        assert!(!may_be_left(&group("cpu", &[("memory.max", "max\n"), ("cpu.max", "50000 100000\n")])));
    }
}
