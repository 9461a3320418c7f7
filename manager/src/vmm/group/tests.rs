use super::*;
use crate::home::{directory::SandboxDirectory, layout::Home};
use crate::vmm::spawn::{Streams, spawn};
use std::process::{Child, Command};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Returns the directory of a sandbox in a home, or `None` if no control group can be made on this
/// host.
fn sandbox() -> Option<(tempfile::TempDir, Home, SandboxDirectory)> {
    if !containment().group {
        eprintln!("left out: no control group can be made here");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(&dir.path().join("home")).unwrap();
    let directory = SandboxDirectory::create(home.root().join("sandboxes/x")).unwrap();
    Some((dir, home, directory))
}

/// Starts a shell in `group`, with a child that leaves its session and closes all its streams.
fn family_in(group: &Group) -> Child {
    let script = format!(
        "echo $$ >{}/cgroup.procs; setsid sh -c 'sleep 60 & sleep 60' </dev/null >/dev/null 2>&1 & sleep 60",
        group.path().display()
    );
    let child = Command::new("sh").arg("-c").arg(script).spawn().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while group.read("cgroup.procs").unwrap().lines().count() < 4 {
        assert!(std::time::Instant::now() < deadline, "the processes do not start");
        thread::sleep(Duration::from_millis(1));
    }
    child
}

fn wait_until_empty(group: &Group) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while group.is_populated() {
        assert!(std::time::Instant::now() < deadline, "{} does not empty", group.path().display());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn group_kills_all_its_processes_in_both_ways() {
    let Some((_dir, home, directory)) = sandbox() else { return };
    let group = Group::take(&home, &directory).unwrap().unwrap();
    for kill in [Group::kill, Group::kill_one_by_one] {
        assert!(!group.is_populated());
        let mut child = family_in(&group);
        assert!(group.is_populated());
        assert!(!Group::remove(group.path()), "a group with processes stays");
        kill(&group).unwrap();
        wait_until_empty(&group);
        child.wait().unwrap();
    }
    assert!(Group::release(&directory) && !group.path().exists());
    assert!(Group::of(&directory).is_none());
}

#[test]
fn sandbox_keeps_its_group_path() {
    let Some((_dir, home, directory)) = sandbox() else { return };
    let first = Group::take(&home, &directory).unwrap().unwrap();
    let again = Group::take(&home, &directory).unwrap().unwrap();
    assert_eq!(first.path(), again.path());
    assert!(Group::remove(first.path()));
    let made = Group::take(&home, &directory).unwrap().unwrap();
    assert!(made.path().exists());
    assert!(Group::release(&directory));
}

/// A reset and a resume from disk do this: the VMM is ended by its group, and another is started in
/// its place.
#[test]
fn process_survives_in_a_group_that_was_killed_before() {
    let Some((_dir, home, directory)) = sandbox() else { return };
    let cat = Path::new("/bin/cat");
    for round in 0..2 {
        let group = Group::take(&home, &directory).unwrap().unwrap();
        let (input, end) = std::io::pipe().unwrap();
        let spawned = {
            let log = tempfile::tempfile().unwrap().into();
            spawn(cat, None, Streams { input: input.into(), output: None, log }, Some(&group)).unwrap()
        };
        assert!(spawned.is_in_group);
        drop(end);
        let (_, status) = rustix::process::waitpid(Some(spawned.pid), rustix::process::WaitOptions::empty())
            .unwrap()
            .expect("it has ended");
        assert_eq!(status.exit_status(), Some(0), "round {round}: {status:?}");
        group.kill().unwrap();
    }
    assert!(Group::release(&directory));
}

#[test]
fn foreign_groups_are_not_killed_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let directory = SandboxDirectory::create(dir.path().join("x")).unwrap();
    let innocent = dir.path().join("innocent");
    let looks_like_ours = dir.path().join("sandboxvm-abcdefgh");
    for path in [&innocent, &looks_like_ours] {
        fs::create_dir(path).unwrap();
        rustix::fs::symlinkat(path, directory.fd(), LINK).unwrap();
        assert!(Group::of(&directory).is_none(), "not a control group");
        directory.unlink(LINK).unwrap();
    }
    rustix::fs::symlinkat(&innocent, directory.fd(), LINK).unwrap();
    assert!(Group::release(&directory) && innocent.exists());
}

#[test]
fn pool_hands_out_each_group_once_and_drains() {
    let Some((_dir, home, _)) = sandbox() else { return };
    pool::fill(&home).unwrap();
    let ready = fs::read_dir(home.groups()).unwrap().count();
    assert!(ready > 0);
    let directories: Vec<SandboxDirectory> = (0..ready + 2)
        .map(|number| SandboxDirectory::create(home.root().join(format!("sandboxes/s{number}"))).unwrap())
        .collect();
    let groups: Vec<Group> = thread::scope(|scope| {
        let takers: Vec<_> = directories
            .iter()
            .map(|directory| scope.spawn(|| Group::take(&home, directory).unwrap().unwrap()))
            .collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).collect()
    });
    let mut paths: Vec<&Path> = groups.iter().map(Group::path).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), directories.len(), "one group for each");
    assert_eq!(fs::read_dir(home.groups()).unwrap().count(), 0, "all were handed out");
    pool::fill(&home).unwrap();
    pool::fill(&home).unwrap();
    let made: Vec<PathBuf> =
        fs::read_dir(home.groups()).unwrap().map(|link| fs::read_link(link.unwrap().path()).unwrap()).collect();
    assert_eq!(made.len(), ready);
    pool::drain(&home).unwrap();
    assert_eq!(fs::read_dir(home.groups()).unwrap().count(), 0);
    assert!(made.iter().all(|group| !group.exists()));
    assert!(directories.iter().all(Group::release));
}

/// Remains that are possible: a group with a link that was never made, one that was made and never
/// used, and one from before a restart of the host.
#[test]
fn filling_removes_remains_of_a_killed_filler() {
    let Some((_dir, home, _)) = sandbox() else { return };
    let half_made = making::new_path().unwrap();
    making::make(&half_made).unwrap();
    let never_made = making::new_path().unwrap();
    std::os::unix::fs::symlink(&half_made, home.groups().join("new.0")).unwrap();
    std::os::unix::fs::symlink(&never_made, home.groups().join("0123456789ab.0")).unwrap();
    pool::fill(&home).unwrap();
    assert!(!half_made.exists());
    assert!(!home.groups().join("new.0").is_symlink() && !home.groups().join("0123456789ab.0").is_symlink());
    pool::drain(&home).unwrap();
}

/// As systemd does to what is below a service that starts again; on a host without controllers nothing is there to be lost.
#[test]
fn bounds_that_were_lost_are_set_again() {
    let Some((_dir, home, directory)) = sandbox() else { return };
    let record = crate::record::tests::example("abcdefgh");
    drop(directory);
    let directory = SandboxDirectory::create(home.sandbox(&record.id)).unwrap();
    record.write(&directory).unwrap();
    let group = Group::take(&home, &directory).unwrap().unwrap();
    pool::fill(&home).unwrap();
    let waiting = fs::read_link(fs::read_dir(home.groups()).unwrap().next().unwrap().unwrap().path()).unwrap();
    let files = [("pids.max", group.path()), ("memory.max", group.path()), ("pids.max", waiting.as_path())];
    let there = files.map(|(file, path)| path.join(file)).into_iter().filter(|file| file.exists());
    let there: Vec<PathBuf> = there.collect();
    there.iter().for_each(|file| fs::write(file, "max").unwrap());
    crate::Manager { home: home.clone() }.renew_bounds();
    for file in &there {
        assert_ne!(fs::read_to_string(file).unwrap(), "max\n", "{}", file.display());
    }
    pool::drain(&home).unwrap();
    assert!(Group::release(&directory));
}
