//! Volumes, file systems in memory and a read-only root, in real guests: what is kept, what is refused, and
//! what a machine that is killed leaves.

use sandboxvm_tests::{
    home::{Home, SMALL, Sandbox},
    host::processes,
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

/// Two volumes to write. All machines with these are of one kind, so the kernel boots once.
const WRITER: [&str; 6] = ["-m", SMALL, "-v", "cache:/data", "-v", "small:/etc/skel"];
const READER: [&str; 4] = ["-m", SMALL, "-v", "cache:/data:ro"];

/// Kills the VMM, and waits until the kernel has closed its files: it holds the lock of its volumes until then.
fn kill_vmm(sandbox: &Sandbox<'_>) {
    let vmm = sandbox.vmm_pid();
    processes::kill(vmm);
    let begin = Instant::now();
    // The first thread may be gone while another one still has them open.
    let threads = || fs::read_dir(format!("/proc/{vmm}/task")).map_or(0, Iterator::count);
    while processes::is_alive(vmm) || threads() > 1 {
        assert!(begin.elapsed() < Duration::from_secs(20), "the VMM does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn volumes_outlive_machines_and_have_one_writer() {
    let Some(home) = Home::with_kvm() else { return };
    let refused = |arguments: &[&str], reasons: &[&str]| {
        let _ = home.cli(arguments).run().fails_with(reasons);
    };
    let _ = home.cli(["volume", "create", "small", "--size", "64M"]).run().succeeds();
    let beside = ["--name", "writer", "--read-only", "--tmpfs", "/scratch:size=1M,mode=0700"];
    let writer = home.create(&[&WRITER[..], &beside].concat());
    let said = |script: &str| writer.sh(script).succeeds().out();

    // What was synced is there after the machine was killed, and only a writer can replay the journal. A volume
    // that got its content is not new again: this writes only data, so nothing else syncs its directories.
    let _ = said("echo x >/scratch/x; echo synced >/data/synced; sync /data/synced");
    let _ = said("printf X | dd of=/etc/skel/.bashrc conv=notrunc,fdatasync");
    kill_vmm(&writer);
    refused(&[&["create"], &READER[..]].concat(), &["was not unmounted cleanly", "mounts it writable"]);
    let _ = home.cli(["reset", "writer"]).run().succeeds();
    assert_eq!(said("cat /data/synced; head -c 1 /etc/skel/.bashrc"), "synced\nX");
    assert_eq!(said("ls -A /scratch | wc -l"), "0\n");

    // The root is read-only, also after a reset, and what is mounted is not.
    assert!(writer.sh("touch /root/x").err().contains("Read-only file system"));
    assert_eq!(said("echo a >/data/a; echo b >/scratch/b; echo c >/dev/shm/c; cat /data/a /scratch/b"), "a\nb\n");
    assert_eq!(said("stat -c '%a %T' -f /scratch; stat -c %a /scratch").lines().last(), Some("700"));
    assert!(writer.sh("head -c 2M /dev/zero >/scratch/big").err().contains("No space left"));
    assert!(writer.sh("cp /bin/true /scratch/; /scratch/true").err().contains("Permission denied"));
    let _ = home.cli(["cp", "/etc/hostname", "writer:/root/x"]).run().fails_with(&["ead-only"]);
    let _ = home.cli(["cp", "/etc/hostname", "writer:/data/hostname"]).run().succeeds();
    // A new volume has the content of the image's directory, and no directory of mke2fs.
    assert_eq!(said("ls -A /data"), "a\nhostname\nsynced\n");
    assert!(said("ls -A /etc/skel; stat -c '%U %a' /etc/skel").contains(".bashrc\n"));
    assert!(said("grep ' /data ' /proc/mounts").contains("nodev"));

    // A full volume is full in the guest, and takes no more than its size on the host.
    let small = home.path().join("volumes/small");
    let _ = said("fallocate -l 48M /etc/skel/room");
    assert!(writer.sh("head -c 16M /dev/zero >/etc/skel/big").err().contains("No space left"));
    let _ = said("sync -f /etc/skel");
    let full = small.metadata().expect("it is a file");
    assert_eq!(full.len(), 64 << 20);
    let _ = said("rm /etc/skel/big /etc/skel/room; sync -f /etc/skel; sync");
    let left = small.metadata().expect("it is a file").blocks() * 512;
    assert!(left < full.blocks() * 256, "{left} bytes are left of {} blocks", full.blocks());

    // One writer, or readers.
    refused(&[&["create"], &WRITER[..]].concat(), &["mounted in sandbox writer", "one writer"]);
    refused(&[&["create"], &READER[..]].concat(), &["mounted in sandbox writer"]);
    refused(&["snapshot", "create", "writer", "kept"], &["can write volume", "hint", ":ro"]);
    refused(&["fork", "writer"], &["can write volume", "one writer"]);
    refused(&["volume", "rm", "cache"], &["sandbox writer uses it"]);

    let _ = home.cli(["pause", "writer"]).run().succeeds();
    let _ = home.cli(["resume", "writer"]).run().succeeds();
    let _ = said("echo stopped >/data/stopped");
    let _ = home.cli(["stop", "-t", "1s", "writer"]).run().succeeds();

    // Readers.
    let reader = home.create(&[&READER[..], &["--name", "reader", "--read-only"]].concat());
    assert_eq!(reader.sh("cat /data/stopped").succeeds().out(), "stopped\n");
    assert!(reader.sh("touch /data/x").err().contains("Read-only file system"));
    // What is refused below is the write: the disk is the volume, and dd reads it.
    let read = "grep '^/dev/vdd /data ' /proc/mounts && dd if=/dev/vdd of=/dev/null bs=4096 count=1";
    let _ = reader.sh(read).succeeds();
    let around = "mount -o remount,rw /data || dd if=/dev/zero of=/dev/vdd bs=4096 count=1 conv=fsync";
    assert_ne!(reader.sh(around).code(), Some(0), "root wrote a volume that is read-only");
    refused(&["reset", "writer"], &["mounted in sandbox reader"]);
    let copy = home.cli(["fork", "reader"]).run().succeeds().out();
    let read_and_write = ["sh", "-c", "cat /data/a; ! touch /root/x"];
    let _ = home.cli(["exec", copy.trim(), "--"]).args(read_and_write).run().succeeds();
    let _ = home.cli(["snapshot", "create", "reader", "kept"]).run().succeeds();
    for sandbox in [copy.trim(), "reader", "writer"] {
        let _ = home.cli(["rm", "-f", sandbox]).run().succeeds();
    }
    let restored = home.create(&["--from", "kept"]);
    assert_eq!(restored.sh("cat /data/synced; ! touch /root/x").succeeds().out(), "synced\n");
    restored.remove();

    // `run` unmounts its volumes, and what it writes makes a snapshot of a reader useless.
    let write = [&["run"], &WRITER[..], &["--", "sh", "-c", "echo run >/data/run"]].concat();
    let _ = home.cli(&write).run().succeeds();
    refused(&["create", "--from", "kept"], &["volume cache was written"]);
    // A reset to it does not end the machine that runs.
    let reader = home.create(&[&READER[..], &["--name", "again", "--read-only"]].concat());
    refused(&["reset", "again", "kept"], &["volume cache was written"]);
    assert_eq!(reader.sh("cat /data/run").succeeds().out(), "run\n");
    reader.remove();
    let _ = home.cli(["snapshot", "rm", "kept"]).run().succeeds();
    let _ = home.cli(["volume", "prune"]).run().succeeds();
    assert_eq!(home.cli(["volume", "ls", "-q"]).run().succeeds().out(), "cache\nsmall\n");
    let _ = home.cli(["volume", "prune", "--all"]).run().succeeds();
    assert_eq!(home.cli(["volume", "ls", "-q"]).run().succeeds().out(), "");
    home.assert_nothing_left();
}
