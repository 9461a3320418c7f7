//! The changes of the disk over the wire, from the upper directory of a real overlay. The overlay is
//! mounted in a separate mount namespace, so these tests need root.

use crate::files::{ask, last, reply};
use crate::host::{Agent, Event};
use sandboxvm_archive::{Entry, Kind, Reader};
use sandboxvm_protocol::agent::files::{FileErrorKind, FileOperation, FilePath, FileReply, FileRequest, FileTotals};
use sandboxvm_protocol::agent::workspace::WorkspaceMount;
use sandboxvm_protocol::agent::{AgentMessage, CText, FailureKind, HostMessage};
use sandboxvm_protocol::machine::SlotNumber;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// An overlay that was changed: its directories, and the agent that packs its changes.
struct Changed {
    agent: Agent,
    directory: tempfile::TempDir,
}

impl Changed {
    /// Runs `before` in the lower directory and `after` in the overlay, both by sh.
    fn by(before: &str, after: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount an overlay");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let script = format!(
            "set -e; (cd lower; {before}); \
             mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged; (cd merged; {after})"
        );
        let status = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .current_dir(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "{after}");
        Some(Self { agent: Agent::start_with_upper(&directory.path().join("upper")), directory })
    }

    fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }

    fn pack(&self) -> Vec<u8> {
        self.packed().0
    }

    fn packed(&self) -> (Vec<u8>, FileTotals) {
        self.packed_by(FileOperation::PackChanges)
    }

    fn packed_by(&self, operation: FileOperation) -> (Vec<u8>, FileTotals) {
        let mut host = ask(&self.agent, operation);
        assert_eq!(reply(&mut host), FileReply::Begun(None));
        let mut bytes = Vec::new();
        loop {
            match host.next() {
                Event::Stdout(data) => bytes.extend(data),
                Event::Message(AgentMessage::File(FileReply::Done(totals))) => {
                    assert_eq!(host.next(), Event::Closed);
                    return (bytes, totals);
                }
                other => panic!("expected data or their end, got {other:?}"),
            }
        }
    }

    fn failure(&self) -> (FileErrorKind, String) {
        let mut host = ask(&self.agent, FileOperation::PackChanges);
        assert_eq!(reply(&mut host), FileReply::Begun(None));
        loop {
            match host.next() {
                Event::Stdout(_) => {}
                Event::Message(AgentMessage::File(FileReply::Failed(failure))) => {
                    return (failure.kind, failure.message);
                }
                other => panic!("expected a failure, got {other:?}"),
            }
        }
    }
}

fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(bytes).keep_all_attributes();
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

fn paths(bytes: &[u8]) -> Vec<String> {
    entries(bytes).into_iter().map(|entry| String::from_utf8(entry.path).unwrap()).collect()
}

/// Returns the paths without marks. A kernel may mark a new directory as opaque where nothing is hidden.
fn additions(bytes: &[u8]) -> Vec<String> {
    paths(bytes).into_iter().filter(|path| !path.contains(".wh.")).collect()
}

#[test]
fn removals_of_an_overlay_become_whiteouts() {
    let Some(changed) = Changed::by(
        "mkdir old emptied stays; touch old/a emptied/a emptied/b stays/a removed",
        "rm removed; rm -r old; mkdir old; touch old/b; rm emptied/*; echo new >stays/b; chmod 700 stays",
    ) else {
        return;
    };
    let (bytes, totals) = changed.packed();
    let expected = [
        ".wh.removed",
        "emptied/",
        "emptied/.wh.a",
        "emptied/.wh.b",
        "old/",
        "old/.wh..wh..opq",
        "old/b",
        "stays/",
        "stays/b",
    ];
    assert_eq!(paths(&bytes), expected);
    assert_eq!(totals.entries, expected.len() as u64);
    let all = entries(&bytes);
    assert!(all.iter().all(|entry| entry.attributes.is_empty()), "attributes of the overlay stay in the guest");
    assert_eq!(all.iter().find(|entry| entry.path == b"stays/").unwrap().mode, 0o700);
    assert_eq!(bytes, changed.pack(), "the same tree gives the same bytes");
}

#[test]
fn what_the_agent_creates_at_boot_is_no_change_and_anything_else_is() {
    let own = "umask 022; mkdir dev proc sys run etc; touch etc/hostname etc/machine-id etc/hosts; \
               echo 'nameserver 198.18.0.1' >etc/resolv.conf";
    let Some(changed) = Changed::by("", own) else { return };
    assert_eq!(additions(&changed.pack()), ["etc/"]);
    let programs = "umask 022; mkdir dev proc sys run tmp etc; touch dev/x tmp/x; chmod 700 proc; chown 1 run; \
                    echo a >etc/hostname; touch etc/machine-id; chmod 600 etc/machine-id; mkdir etc/hosts; \
                    echo 'nameserver 198.18.0.2' >etc/resolv.conf";
    let Some(changed) = Changed::by("mkdir dev proc run tmp etc", "") else { return };
    assert_eq!(paths(&changed.pack()), [""; 0]);
    let Some(changed) = Changed::by("", programs) else { return };
    let packed = additions(&changed.pack());
    let expected = [
        "dev/",
        "dev/x",
        "etc/",
        "etc/hostname",
        "etc/hosts/",
        "etc/machine-id",
        "etc/resolv.conf",
        "proc/",
        "run/",
        "tmp/",
        "tmp/x",
    ];
    assert_eq!(packed, expected);
}

#[test]
fn a_workspace_has_changes_of_its_own() {
    let Some(changed) = Changed::by("", "touch of-the-root") else { return };
    let place = changed.directory.path().join("workspaces/1");
    fs::create_dir_all(place.join("upper")).unwrap();
    // These names have a meaning in the root alone.
    fs::create_dir(place.join("upper/dev")).unwrap();
    fs::write(place.join("upper/file"), "x").unwrap();
    let of = |slot: u8| FileOperation::PackWorkspace { lowest: slot.try_into().unwrap() };
    assert_eq!(paths(&changed.packed_by(of(1)).0), ["dev/", "file"]);
    assert_eq!(additions(&changed.pack()), ["of-the-root"]);
    let failure = |slot| match last(ask(&changed.agent, of(slot))) {
        FileReply::Failed(failure) => failure.kind,
        other => panic!("expected a failure, got {other:?}"),
    };
    assert_eq!(failure(0), FileErrorKind::NotFound);
    // What root of the guest put there is not followed.
    fs::create_dir(changed.directory.path().join("workspaces/2")).unwrap();
    std::os::unix::fs::symlink("/etc", changed.directory.path().join("workspaces/2/upper")).unwrap();
    assert_eq!(failure(2), FileErrorKind::BadPath);
}

#[test]
fn an_agent_that_is_not_pid_1_mounts_nothing() {
    let mount = WorkspaceMount {
        slots: vec![SlotNumber::FIRST],
        at: FilePath::try_from("/workspace").unwrap(),
        uid: 0,
        gid: 0,
    };
    let agent = Agent::start();
    let mut host = ask(&agent, FileOperation::MountWorkspace(mount));
    match host.next() {
        Event::Message(AgentMessage::Failed(failure)) => assert_eq!(failure.kind, FailureKind::BadRequest),
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn only_root_gets_the_changes_and_only_of_an_agent_that_has_an_overlay() {
    let agent = Agent::start();
    match last(ask(&agent, FileOperation::PackChanges)) {
        FileReply::Failed(failure) => assert_eq!(failure.kind, FileErrorKind::BadRequest),
        other => panic!("expected a failure, got {other:?}"),
    }
    let Some(changed) = Changed::by("", "touch a") else { return };
    let user = Some(CText::try_from("65534").unwrap());
    let request = FileRequest { user, operation: FileOperation::PackChanges };
    let mut host = changed.agent.ask(HostMessage::Files(request));
    match reply(&mut host) {
        FileReply::Failed(failure) => assert_eq!(failure.kind, FileErrorKind::PermissionDenied),
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[test]
fn programs_of_the_sandbox_do_not_inherit_the_upper_directory() {
    let Some(changed) = Changed::by("", "touch a") else { return };
    let upper = changed.upper();
    let held = |pid: &str| {
        let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        names.filter(|name| fs::read_link(name.path()).is_ok_and(|target| target == upper)).count()
    };
    assert_eq!(held(&changed.agent.pid().to_string()), 1);
    let (_host, pid) = changed.agent.start_process(crate::host::command(&["sleep", "1000"]));
    assert_eq!(held(&pid.to_string()), 0);
}

#[test]
fn what_a_layer_cannot_express_is_an_error() {
    let Some(changed) = Changed::by("", "mkdir -p d; touch d/.wh.a") else { return };
    let (kind, message) = changed.failure();
    assert_eq!(kind, FileErrorKind::NotAFile);
    assert!(message.starts_with("\"d/.wh.a\" cannot be part of a layer: "), "{message}");
    let Some(changed) = Changed::by("", "mkdir d") else { return };
    let set = rustix::fs::setxattr(
        changed.upper().join("d"),
        "trusted.overlay.redirect",
        b"/elsewhere",
        rustix::fs::XattrFlags::empty(),
    );
    set.unwrap();
    assert!(changed.failure().1.contains("redirect"));
}

#[test]
fn odd_names_links_and_attributes_are_packed() {
    let program = r#"printf x >"$(printf 'a\377\nb')"; ln "$(printf 'a\377\nb')" twin; ln -s /etc/passwd link; mkfifo pipe;
        mknod disk b 7 3; touch -d '2001-02-03 04:05:06.123456789 UTC' dated; chown 70000:80000 dated; chmod 4750 dated;
        setfattr -n user.note -v value dated; truncate -s 1M holes; mkdir -p long/$(printf %0200d 0)/$(printf %0200d 1)"#;
    let Some(changed) = Changed::by("", program) else { return };
    let all = entries(&changed.pack());
    let at = |path: &[u8]| all.iter().find(|entry| entry.path == path).unwrap();
    assert_eq!(at(b"twin").kind, Kind::HardLink(b"a\xff\nb".to_vec()));
    assert_eq!(at(b"link").kind, Kind::Symlink(b"/etc/passwd".to_vec()));
    assert_eq!(at(b"pipe").kind, Kind::Fifo);
    assert_eq!(at(b"disk").kind, Kind::Device { is_block: true, major: 7, minor: 3 });
    let dated = at(b"dated");
    assert_eq!((dated.mode, dated.uid, dated.gid), (0o4750, 70_000, 80_000));
    assert_eq!((dated.modified.seconds, dated.modified.nanoseconds), (981_173_106, 123_456_789));
    assert_eq!(dated.attributes, [(b"user.note".to_vec(), b"value".to_vec())]);
    assert_eq!(at(b"holes").kind, Kind::File { size: 1 << 20, extents: None });
    assert!(all.iter().any(|entry| entry.path.len() > 400));
}

#[test]
fn a_hundred_thousand_names_are_packed_in_order() {
    let Some(changed) = Changed::by("", "true") else { return };
    for number in 0..100_000 {
        fs::File::create(changed.upper().join(format!("file-{number:06}"))).unwrap();
    }
    let packed = paths(&changed.pack());
    assert_eq!(packed.len(), 100_000);
    assert!(packed.is_sorted());
    assert!(changed.agent.answers_ping());
}

#[test]
fn too_deep_a_directory_is_an_error_and_not_an_overflow() {
    let deep = "i=0; while [ $i -lt 300 ]; do mkdir d; cd d; i=$((i+1)); done";
    let Some(changed) = Changed::by("", deep) else { return };
    assert_eq!(changed.failure().0, FileErrorKind::BadPath);
}
