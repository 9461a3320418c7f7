//! The manager and a VMM that starts, holds what it was given and never says a word: nothing waits for it for ever, and
//! nothing of it stays.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sandboxvm_images::{bundle::Bundle, template::DiskSize};
use sandboxvm_manager::{CreateError, Manager, NameError, RemoveError, SandboxSpec, StartError, StartFrom, State};
use sandboxvm_protocol::ids::SandboxName;
use std::{
    fs::{self, Permissions},
    io::IoSliceMut,
    mem::MaybeUninit,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

struct Place {
    dir: tempfile::TempDir,
    manager: Manager,
    bundle: Bundle,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Control groups that were made ahead are nobody else's to remove.
        let _ = self.manager.prune(false);
    }
}

impl Place {
    fn new() -> Self {
        Self::with("plays_the_stuck_vmm")
    }

    /// With that test as the VMM.
    fn with(player: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).expect("a new file");
            fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("our own file");
            path
        };
        let program = std::env::current_exe().expect("a running program has a path");
        let script = format!("#!/bin/sh\nexec {} --ignored --exact {player}\n", program.display());
        let mut elf = vec![0u8; 120];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        for (at, value) in [(16, 2), (18, 62), (32, 64), (54, 56), (56, 1), (64, 1)] {
            elf[at] = value;
        }
        let mut erofs = vec![0u8; 4096];
        erofs[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
        erofs[1036] = 12;
        erofs[1060] = 1;
        let bundle = Bundle {
            vmm: file("stuck-vmm", script.as_bytes()),
            kernel: file("vmlinux", &elf),
            image: file("base.erofs", &erofs),
            agent: file("agent.erofs", &erofs),
            egress: dir.path().join("no-egress"),
            layers: dir.path().join("no-layers"),
            share: dir.path().join("no-share"),
        };
        let manager = Manager::open(&dir.path().join("home")).expect("a home");
        Self { dir, manager, bundle }
    }

    fn spec(&self) -> SandboxSpec {
        let name = SandboxName::try_from("demo".to_owned()).expect("a name");
        let disk = DiskSize::try_from(64 << 20).expect("the least");
        SandboxSpec {
            name: Some(name),
            disk,
            start_from: StartFrom::Boot,
            boot_timeout: Duration::from_millis(300),
            ..SandboxSpec::default()
        }
    }

    /// Until the VMM has taken its files.
    fn wait_for_vmm(&self) {
        let begin = Instant::now();
        while !holders_of(&self.dir.path().join("home")).iter().any(|lock| lock.ends_with("lock")) {
            assert!(begin.elapsed() < Duration::from_secs(20), "the VMM does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn assert_empty(&self) {
        for part in ["sandboxes", "names", "ephemeral", "staging", "trash"] {
            let entries = fs::read_dir(self.dir.path().join("home").join(part)).expect("a part of the home");
            assert_eq!(entries.count(), 0, "something is left in {part}");
        }
        assert_eq!(holders_of(self.dir.path()), Vec::<String>::new(), "processes are left");
    }
}

/// What processes other than this one have open in `directory`. Only numbers count: `/proc/self` and
/// `/proc/thread-self` are this process too, which may still fill its pool of control groups.
fn holders_of(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let files = pids.filter(|pid| *pid != std::process::id()).flat_map(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok())
    });
    files.filter(|target| target.starts_with(directory)).map(|target| target.display().to_string()).collect()
}

/// This program run again, as the VMM: takes its files, and that is all it ever does.
#[test]
#[ignore = "no test of its own: a part that the others play against"]
fn plays_the_stuck_vmm() {
    let mut bytes = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(rustix::stdio::stdin(), &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    if received.is_err() {
        // Run by hand, or by whoever runs all that is ignored: nobody plays.
        return;
    }
    let _kept: Vec<RecvAncillaryMessage<'_>> = ancillary.drain().collect();
    std::thread::sleep(Duration::from_secs(600));
}

#[tokio::test]
async fn a_machine_that_does_not_boot_is_given_up_in_time() {
    let place = Place::new();
    let begin = Instant::now();
    let error = place.manager.create(&place.bundle, &place.spec()).await.expect_err("it does not boot");
    assert!(matches!(error, CreateError::Start { cause: StartError::TimedOut(_), .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    place.assert_empty();
}

#[tokio::test]
async fn while_it_boots_its_name_is_taken_and_it_is_not_removed_by_accident() {
    let place = Place::new();
    let started = place.manager.start(&place.bundle, &place.spec()).await.expect("it starts");
    assert_eq!(started.sandbox().state().expect("readable"), State::Creating);
    let error = place.manager.start(&place.bundle, &place.spec()).await.expect_err("the name is taken");
    assert!(matches!(error, CreateError::Name(NameError::Taken { .. })), "{error}");
    let error = place.manager.remove("demo", false).await.expect_err("it lives");
    assert!(matches!(error, RemoveError::Live { state: State::Creating, .. }), "{error}");
    assert!(place.manager.prune(false).expect("nothing to prune").sandboxes.is_empty());
    assert_eq!(place.manager.list().expect("a list").len(), 1);
    started.finish().await.expect("its files go");
    place.assert_empty();
}

#[tokio::test]
async fn whoever_stops_waiting_leaves_nothing() {
    let place = Place::new();
    drop(place.manager.start(&place.bundle, &place.spec()).await.expect("it starts"));
    // Its VMM was told; being gone takes it a moment.
    tokio::time::sleep(Duration::from_millis(200)).await;
    place.assert_empty();
    let spec = place.spec();
    let creating = place.manager.create(&place.bundle, &spec);
    assert!(tokio::time::timeout(Duration::from_millis(100), creating).await.is_err());
    tokio::time::sleep(Duration::from_millis(200)).await;
    place.assert_empty();
}

#[tokio::test]
async fn one_let_go_lives_on_and_is_removed_by_force_without_its_help() {
    let place = Place::new();
    let sandbox = place.manager.start(&place.bundle, &place.spec()).await.expect("it starts").detach();
    place.wait_for_vmm();
    assert_eq!(sandbox.state().expect("readable"), State::Creating);
    drop(sandbox);
    let begin = Instant::now();
    place.manager.remove("demo", true).await.expect("it goes");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    place.assert_empty();
}

#[tokio::test]
async fn what_an_ephemeral_one_leaves_goes_with_the_next_sweep_only_once_it_is_over() {
    let place = Place::new();
    let spec = SandboxSpec { ephemeral: true, ..place.spec() };
    let sandbox = place.manager.start(&place.bundle, &spec).await.expect("it starts").detach();
    place.wait_for_vmm();
    assert!(place.manager.sweep().expect("a sweep").sandboxes.is_empty(), "somebody holds it");
    sandbox.kill().await.expect("it ends");
    assert!(place.manager.sweep().expect("a sweep").sandboxes.is_empty(), "somebody holds it");
    drop(sandbox);
    assert_eq!(place.manager.sweep().expect("a sweep").sandboxes.len(), 1);
    // Its name goes with the next claim or prune.
    place.manager.prune(false).expect("a prune");
    place.assert_empty();
}

/// This program run again, as a VMM that was taken over: it lets go of its lock, and has a child that left its session.
#[test]
#[ignore = "no test of its own: a part that the others play against"]
fn plays_the_vmm_that_hides() {
    let mut bytes = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(rustix::stdio::stdin(), &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    if received.is_err() {
        return;
    }
    ancillary.drain().for_each(drop);
    // Its name says whose it is; it holds nothing.
    let name = format!("hidden-{}", std::process::id());
    let script = format!("exec -a {name} sleep 600");
    let mut child = std::process::Command::new("setsid").args(["bash", "-c", &script]).spawn().expect("it starts");
    child.wait().expect("it is our child");
}

/// Processes of the VMM that hides, other than those of other tests.
fn hidden(vmm: u32) -> Vec<u32> {
    let name = format!("hidden-{vmm}\0");
    let pids = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid == vmm && !arguments.is_empty() || arguments.starts_with(name.as_bytes())
        })
        .collect()
}

/// Starts one in a group of processes that the test does not know, and waits until it hides.
async fn hide(place: &Place) -> u32 {
    let lock = place.dir.path().join("home/sandboxes");
    let sandbox = place.manager.start(&place.bundle, &place.spec()).await.expect("it starts").detach();
    let group = fs::read_link(lock.join(sandbox.id().as_str()).join("group")).expect("a control group");
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < Duration::from_secs(20), "the VMM does not hide");
        let processes = fs::read_to_string(group.join("cgroup.procs")).expect("a control group");
        let vmm = processes.lines().next().and_then(|pid| pid.parse().ok());
        if let Some(vmm) = vmm
            && hidden(vmm).len() == 2
            && sandbox.state().expect("readable") == State::Dead
        {
            return vmm;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn goes_away(vmm: u32) {
    let begin = Instant::now();
    while !hidden(vmm).is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(20), "left: {:?}", hidden(vmm));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_vmm_that_hides_is_ended_by_every_way_in_which_a_sandbox_ends() {
    if !sandboxvm_manager::containment().group {
        eprintln!("left out: no control group can be made here");
        return;
    }
    let place = Place::with("plays_the_vmm_that_hides");
    let vmm = hide(&place).await;
    place.manager.remove("demo", false).await.expect("it goes");
    goes_away(vmm).await;
    place.assert_empty();

    let vmm = hide(&place).await;
    assert_eq!(place.manager.prune(false).expect("a prune").sandboxes.len(), 1);
    goes_away(vmm).await;
    place.assert_empty();

    let vmm = hide(&place).await;
    let stopped = place.manager.find("demo").expect("it is there").stop(Duration::ZERO).await;
    assert!(matches!(stopped, Ok(sandboxvm_manager::Stopped::ByForce(_))), "{stopped:?}");
    goes_away(vmm).await;
    place.manager.remove("demo", false).await.expect("it goes");
    place.assert_empty();

    let vmm = hide(&place).await;
    place.manager.find("demo").expect("it is there").kill().await.expect("it ends");
    goes_away(vmm).await;
    place.manager.remove("demo", false).await.expect("it goes");
}

/// What a kill -9 of the remover leaves goes with the next sweep: the directory is in the trash, the VMM lives.
#[tokio::test]
async fn a_vmm_that_hides_in_a_half_removed_sandbox_is_ended_by_the_next_sweep() {
    if !sandboxvm_manager::containment().group {
        return;
    }
    let place = Place::with("plays_the_vmm_that_hides");
    let vmm = hide(&place).await;
    let home = place.dir.path().join("home");
    let sandbox = place.manager.find("demo").expect("it is there");
    let id = sandbox.id().as_str().to_owned();
    let group = fs::read_link(home.join("sandboxes").join(&id).join("group")).expect("a control group");
    fs::rename(home.join("sandboxes").join(&id), home.join("trash").join(&id)).expect("one file system");
    place.manager.sweep().expect("a sweep");
    goes_away(vmm).await;
    assert!(!home.join("trash").join(&id).exists() && !group.exists());
}
