//! Drills: a VMM that was taken over attacks its own confinement while its machine runs, from the
//! thread that runs the guest and from the event loop. Each attack must fail in the way that the
//! test states. Each must also succeed when the named protections are off, because otherwise the
//! test would prove nothing.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

use Outcome::{Done, Failed, Killed, Refused};
use sandboxvm_protocol::vmm::VmmThread::{EventLoop, Vcpu};
use sandboxvm_tests::drills::{Drill, Outcome, are_wanted};
use std::{
    fs::{self, File},
    io::Write,
    net::TcpListener,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::PathBuf,
};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EBADF: i32 = 9;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EMFILE: i32 = 24;
const EFBIG: i32 = 27;
const ENETUNREACH: i32 = 101;

/// Asserts that the system call filter refuses the call in the vCPU thread and in the event loop.
#[track_caller]
fn assert_refused(drill: &Drill, call: &'static str) {
    assert_eq!(drill.outcome(), Refused(call, Vcpu), "{drill:?}");
    let drill = drill.clone().by_event_loop();
    assert_eq!(drill.outcome(), Refused(call, EventLoop), "{drill:?}");
}

#[test]
fn a_file_of_the_host_cannot_be_read() {
    if !are_wanted() {
        return;
    }
    let drill = Drill::of("read-file").at("/etc/passwd");
    assert_refused(&drill, "open");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(ENOENT), "its root is empty");
    assert_eq!(drill.without("seccomp,mount").outcome(), Done);
}

#[test]
fn another_sandboxs_directory_cannot_be_seen() {
    if !are_wanted() {
        return;
    }
    let other = tempfile::tempdir().unwrap();
    fs::set_permissions(other.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let secret = other.path().join("disk.0");
    fs::write(&secret, "secret").unwrap();
    let drill = Drill::of("read-file").at(secret.display());
    assert_refused(&drill, "open");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(ENOENT), "its root is empty");
    assert_eq!(drill.clone().without("seccomp,mount").outcome(), Failed(EACCES), "its user owns no file");
    assert_eq!(drill.without("seccomp,mount,user").outcome(), Done);
}

#[test]
fn no_socket_reaches_the_network() {
    if !are_wanted() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let drill = Drill::of("open-socket").at(listener.local_addr().unwrap().port());
    assert_refused(&drill, "socket");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(ENETUNREACH), "its network is empty");
    assert_eq!(drill.without("seccomp,network").outcome(), Done);
}

#[test]
fn another_vmm_cannot_be_traced() {
    if !are_wanted() {
        return;
    }
    let victim = Drill::of("read-inherited").without("own-user").start(None);
    victim.runs();
    let drill = Drill::of("ptrace").at(victim.pid());
    assert_refused(&drill, "ptrace");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(EPERM), "it is another user, without privileges");
    assert_eq!(
        drill.clone().without("seccomp,own-user").outcome(),
        Failed(EPERM),
        "the same user, as live forks have: the victim is not dumpable"
    );
    assert_eq!(drill.without("seccomp,user").outcome(), Done);
}

#[test]
fn another_vmm_cannot_be_signalled() {
    if !are_wanted() {
        return;
    }
    let mut victim = Drill::of("read-inherited").without("own-user").start(None);
    victim.runs();
    let drill = Drill::of("kill").at(victim.pid());
    assert_refused(&drill, "kill");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(EPERM), "it is another user");
    let kick = Drill::of("tkill").at(victim.pid());
    // The filter allows one call that names a process, with one signal.
    assert_eq!(kick.outcome(), Failed(EPERM));
    assert_eq!(kick.clone().by_event_loop().outcome(), Failed(EPERM));
    assert_eq!(kick.without("own-user").outcome(), Done);
    assert!(victim.ended().is_none());
    assert_eq!(drill.without("seccomp,own-user").outcome(), Done);
    let died = || victim.ended();
    assert!(sandboxvm_tests::home::eventually(std::time::Duration::from_secs(5), died).is_some());
}

#[test]
fn each_vmm_has_its_own_user() {
    if !are_wanted() {
        return;
    }
    // This drill does not end its VMM.
    let vmms = [Drill::of("read-inherited").start(None), Drill::of("read-inherited").start(None)];
    let users = vmms.each_ref().map(|vmm| {
        vmm.runs();
        let status = fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    });
    assert_ne!(users[0], users[1]);
    assert!(!users.contains(&"0".to_owned()), "{users:?}");
}

#[test]
fn a_fork_bomb_ends_at_the_limit() {
    if !are_wanted() {
        return;
    }
    let drill = Drill::of("fork-bomb");
    assert_eq!(drill.outcome(), Refused("fork", Vcpu));
    let drill = drill.by_event_loop();
    assert_eq!(drill.outcome(), Failed(EAGAIN), "the event loop forks machines, so it may fork until the limit");
    assert_eq!(drill.without("limits").outcome(), Done);
}

#[test]
fn no_program_can_be_executed() {
    if !are_wanted() {
        return;
    }
    let drill = Drill::of("exec").at("/bin/true");
    assert_refused(&drill, "execve");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(ENOENT), "its root is empty");
    assert_eq!(drill.without("seccomp,mount").outcome(), Done);
}

#[test]
fn nothing_can_be_mounted_and_no_namespace_created() {
    if !are_wanted() {
        return;
    }
    for (name, call) in [("mount", "mount"), ("new-namespace", "unshare")] {
        let drill = Drill::of(name);
        assert_refused(&drill, call);
        assert_eq!(drill.clone().without("seccomp").outcome(), Failed(EPERM), "it has no privileges: {name}");
        assert_eq!(drill.without("seccomp,user").outcome(), Done, "{name}");
    }
}

#[test]
fn root_privileges_cannot_be_regained() {
    if !are_wanted() {
        return;
    }
    let drill = Drill::of("become-root");
    assert_refused(&drill, "setuid");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(EINVAL), "its user namespace has no root");
    assert_eq!(drill.without("seccomp,user").outcome(), Done);
}

#[test]
fn descriptors_of_other_processes_cannot_be_taken() {
    if !are_wanted() {
        return;
    }
    let victim = Drill::of("read-inherited").start(None);
    victim.runs();
    let drill = Drill::of("steal-descriptor").at(victim.pid());
    assert_refused(&drill, "pidfd_open");
    assert_eq!(drill.clone().without("seccomp").outcome(), Failed(EPERM), "it is another user, without privileges");
    assert_eq!(drill.without("seccomp,user").outcome(), Done);
}

#[test]
fn inherited_descriptors_are_closed() {
    if !are_wanted() {
        return;
    }
    let mut secret = tempfile::tempfile().unwrap();
    secret.write_all(b"secret").unwrap();
    // Clears close-on-exec, as a careless program that embeds the manager may. No VMM uses this
    // number itself.
    let left_open = rustix::io::fcntl_dupfd_cloexec(&secret, 500).unwrap();
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).unwrap();
    let drill = Drill::of("read-inherited").at(left_open.as_raw_fd());
    assert_eq!(drill.outcome(), Failed(EBADF));
    assert_eq!(drill.without("descriptors").outcome(), Done);
}

#[test]
fn memory_ends_at_the_limit() {
    if !are_wanted() {
        return;
    }
    let drill = Drill::of("exhaust-memory");
    assert_eq!(drill.outcome(), Failed(ENOMEM));
    assert_eq!(drill.clone().by_event_loop().outcome(), Failed(ENOMEM));
    assert_eq!(drill.without("limits").outcome(), Done);
}

#[test]
fn open_files_end_at_the_limit() {
    if !are_wanted() {
        return;
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The VMM inherits this limit, and would have it if it did not lower it.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    assert!(most.is_none_or(|most| most > 5100), "this test needs 5100 open files, not {most:?}");
    assert_eq!(Drill::of("open-files").outcome(), Refused("eventfd2", Vcpu));
    let drill = Drill::of("open-files").by_event_loop();
    assert_eq!(drill.outcome(), Failed(EMFILE));
    assert_eq!(drill.without("limits").outcome(), Done);
}

#[test]
fn a_vmm_cannot_raise_its_priority() {
    if !are_wanted() {
        return;
    }
    use rustix::process::{Resource, Rlimit, setrlimit};
    // A starter with generous limits, which the VMM inherits and would have if it did not lower
    // them.
    let allow = |resource, most| setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    let is_generous = allow(Resource::Nice, 40).and_then(|()| allow(Resource::Rtprio, 1)).is_ok();
    for name in ["outrank", "run-in-real-time"] {
        assert_eq!(Drill::of(name).outcome(), Refused("sched_setattr", Vcpu), "{name}");
        let drill = Drill::of(name).by_event_loop();
        assert_eq!(drill.outcome(), Failed(EPERM), "it has no privileges: {name}");
        assert_eq!(drill.clone().without("user").outcome(), Done, "{name}");
        // Root in a container may not be allowed to raise limits.
        assert!(!is_generous || drill.without("limits").outcome() == Done, "{name}");
    }
}

#[test]
fn a_sandbox_cannot_change_the_memory_of_the_snapshot_it_was_restored_from() {
    if !are_wanted() {
        return;
    }
    let mut first = Drill::of("write-file").by_event_loop().start(None);
    first.runs();
    let snapshot = first.snapshot();
    let memory = fs::read(snapshot.memory()).unwrap();
    let unchanged = || fs::read(snapshot.memory()).unwrap() == memory;
    let inode = fs::metadata(snapshot.memory()).unwrap().ino();
    // The guest continues where the snapshot's guest was. So it requests the same drill as the
    // first machine.
    let drill = Drill::of("write-file").at(inode);
    assert_eq!(drill.outcome_from(&snapshot), Failed(EBADF));
    assert!(unchanged());
    assert_eq!(drill.with_writable_memory_files().outcome_from(&snapshot), Done);
    assert!(!unchanged(), "without the protection, the drill writes to the shared file");

    let mut first = Drill::of("map-file-shared").by_event_loop().start(None);
    first.runs();
    let snapshot = first.snapshot();
    let drill = Drill::of("map-file-shared").at(fs::metadata(snapshot.memory()).unwrap().ino());
    assert_eq!(drill.outcome_from(&snapshot), Failed(EACCES));
    assert_eq!(drill.with_writable_memory_files().outcome_from(&snapshot), Done);

    let mut first = Drill::of("write-guest-memory").by_event_loop().start(None);
    first.runs();
    let snapshot = first.snapshot();
    let memory = fs::read(snapshot.memory()).unwrap();
    let drill = Drill::of("write-guest-memory").at(fs::metadata(snapshot.memory()).unwrap().ino());
    assert_eq!(drill.outcome_from(&snapshot), Done, "a machine may write its own memory");
    assert!(fs::read(snapshot.memory()).unwrap() == memory, "and not the memory of the snapshot");
}

#[test]
fn a_file_grows_up_to_the_limit() {
    if !are_wanted() {
        return;
    }
    let mut first = Drill::of("grow-file").by_event_loop().start(None);
    first.runs();
    let snapshot = first.snapshot();
    let inode = fs::metadata(snapshot.memory()).unwrap().ino();
    let drill = Drill::of("grow-file").at(inode).with_writable_memory_files();
    assert_eq!(drill.outcome_from(&snapshot), Failed(EFBIG));
    assert_eq!(drill.without("limits").outcome_from(&snapshot), Done);
}

#[test]
fn writable_memory_cannot_be_made_executable() {
    if !are_wanted() {
        return;
    }
    for (name, call) in [("map-code", "mmap"), ("make-code", "mprotect")] {
        assert_refused(&Drill::of(name), call);
        assert_eq!(Drill::of(name).without("seccomp").outcome(), Done, "{name}");
    }
}

#[test]
fn allowed_calls_are_refused_with_harmful_arguments() {
    if !are_wanted() {
        return;
    }
    assert_refused(&Drill::of("set-owner").at(std::process::id()), "fcntl");
    assert_eq!(Drill::of("set-owner").at(std::process::id()).without("seccomp").outcome(), Done);
    assert_refused(&Drill::of("unused-kvm-request"), "ioctl");
    assert_eq!(
        Drill::of("unused-kvm-request").without("seccomp").outcome(),
        Failed(EBADF),
        "the request reached the kernel"
    );
    assert_refused(&Drill::of("merge-pages"), "madvise");
    let merged = Drill::of("merge-pages").without("seccomp").outcome();
    assert!(matches!(merged, Done | Failed(EINVAL)), "{merged:?}");
}

#[test]
fn a_vcpu_thread_has_fewer_calls_than_the_event_loop() {
    if !are_wanted() {
        return;
    }
    let drill = Drill::of("accept");
    assert_eq!(drill.outcome(), Refused("accept4", Vcpu));
    assert_eq!(drill.clone().by_event_loop().outcome(), Failed(EBADF));
    assert_eq!(drill.without("thread-seccomp").outcome(), Failed(EBADF));
}

#[test]
fn the_handler_of_refused_calls_cannot_be_used_to_escape() {
    if !are_wanted() {
        return;
    }
    for name in ["catch-refusals", "block-refusals"] {
        assert_eq!(Drill::of(name).outcome(), Killed, "{name}");
        assert_eq!(Drill::of(name).by_event_loop().outcome(), Killed, "{name}");
        assert_eq!(Drill::of(name).without("seccomp").outcome(), Done, "{name}");
    }
}

/// Returns a program that starts a VMM as an ordinary user. The user's group may open `/dev/kvm`,
/// in a private mount namespace, so the host's `/dev/kvm` keeps its mode.
fn as_an_ordinary_user(directory: &tempfile::TempDir) -> PathBuf {
    let script = directory.path().join("as-user");
    let text = "#!/bin/sh\nset -e\nexec unshare --mount --propagation private sh -ec '\n\
         mount -t tmpfs -o mode=755 none /mnt\nmknod -m 660 /mnt/kvm c 10 232\nchgrp 64999 /mnt/kvm\n\
         mount --bind /mnt/kvm /dev/kvm\n\
         exec setpriv --reuid 64999 --regid 64999 --clear-groups --inh-caps=-all \"$0\" \"$@\"' \"$@\"\n";
    let mut file = File::create(&script).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    drop(file);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn vmms_of_an_ordinary_user_lack_only_the_separate_user() {
    use sandboxvm_protocol::vmm::JailPart;
    if !are_wanted() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let wrapper = as_an_ordinary_user(&directory);
    let drill = |name| Drill::of(name).wrapped_by(&wrapper);
    let vmm = drill("read-inherited").start(None);
    vmm.runs();
    assert_eq!(vmm.status().unwrap().missing, [JailPart::OwnUser]);
    let status = fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{status}");
    }
    for kind in ["user", "mnt", "net", "ipc", "uts", "cgroup"] {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(namespace(&vmm.pid().to_string()), namespace("self"), "{kind}");
    }
    assert_eq!(fs::read_dir(format!("/proc/{}/root", vmm.pid())).unwrap().count(), 0, "its root is not empty");
    assert_eq!(drill("read-file").at("/etc/passwd").outcome(), Refused("open", Vcpu));
    assert_eq!(drill("read-file").at("/etc/passwd").without("seccomp").outcome(), Failed(ENOENT));
    assert_eq!(drill("mount").without("seccomp").outcome(), Failed(EPERM));
    assert_eq!(drill("fork-bomb").outcome(), Refused("fork", Vcpu));
}

#[test]
fn without_user_namespaces_the_status_names_what_the_jail_lacks() {
    use sandboxvm_protocol::vmm::JailPart;
    if !are_wanted() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let wrapper = as_an_ordinary_user(&directory);
    let inner = directory.path().join("without");
    // Runs in a user namespace in which no further ones may be created, so that the host's limit
    // does not change.
    let text = format!(
        "#!/bin/sh\nexec {} unshare --user --map-current-user --keep-caps sh -ec \
         'echo 0 >/proc/sys/user/max_user_namespaces; exec \"$0\"' \"$@\"\n",
        wrapper.display()
    );
    fs::write(&inner, text).unwrap();
    fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
    let drill = Drill::of("read-file").at("/etc/passwd").wrapped_by(&inner);
    let vmm = Drill::of("read-inherited").wrapped_by(&inner).start(None);
    vmm.runs();
    let missing = vmm.status().unwrap().missing;
    assert_eq!(missing, [JailPart::UserNamespace, JailPart::Namespaces, JailPart::EmptyRoot, JailPart::OwnUser]);
    assert_eq!(drill.outcome(), Refused("open", Vcpu), "the filter needs no privilege");
    assert_eq!(drill.without("seccomp").outcome(), Done, "the filter is the only protection");
}

#[test]
fn the_vmm_of_a_bundle_contains_no_drills() {
    if !are_wanted() {
        return;
    }
    let has_drills = |path: PathBuf| {
        let marker = b"SANDBOXVM_DRILL";
        fs::read(path).unwrap().windows(marker.len()).any(|window| window == marker)
    };
    assert!(has_drills(sandboxvm_tests::drills::program()));
    let artefacts = sandboxvm_tests::artefacts::Artefacts::find();
    assert!(!has_drills(artefacts.part("sandboxvm-vmm")));
}
