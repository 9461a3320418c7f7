//! The pool of armed machines, as a long-running process uses it.

use sandboxvm_manager::{Pool, PoolRequest, SandboxSpec, StartFrom};
use sandboxvm_protocol::ids::SandboxName;
use sandboxvm_tests::{
    home::{Home, eventually},
    host::processes,
    library::{Library, run},
};
use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    time::Duration,
};

/// Returns the PIDs of the VMMs that wait in staging.
fn waiting(home: &Home) -> Vec<u32> {
    let staged = fs::read_dir(home.path().join("staging")).expect("the home is there").flatten();
    let own = std::process::id();
    staged
        .flat_map(|entry| processes::that_hold(&entry.path()))
        .map(|process| process.pid)
        .filter(|pid| *pid != own)
        .collect::<HashSet<_>>()
        .into_iter()
        .collect()
}

/// Waits until no armed machine is left. One that is being created ends with its task, when the
/// runtime polls that.
async fn all_end(home: &Home) -> bool {
    let gone = async {
        while !waiting(home).is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.is_ok()
}

#[test]
fn machines_of_a_pool_become_separate_sandboxes() {
    let Some(home) = Home::with_kvm() else { return };
    let library = Library::of(&home, 128);
    library.block_on(async {
        let pool = Pool::new(library.manager.clone(), library.bundle.clone(), library.spec.clone(), 2);
        pool.filled().await.unwrap();
        assert_eq!(pool.armed(), 2);
        assert!(library.manager.list().unwrap().is_empty(), "an armed machine is listed as a sandbox");
        let armed = waiting(&home);
        assert_eq!(armed.len(), 2, "{armed:?}");

        // A VMM that dies while it waits is not handed out, and nothing of it stays.
        processes::kill(armed[0]);
        let gone = eventually(Duration::from_secs(5), || (!waiting(&home).contains(&armed[0])).then_some(()));
        assert!(gone.is_some());

        let request = |name: &str| PoolRequest {
            name: Some(SandboxName::try_from(name.to_owned()).unwrap()),
            env: vec![format!("OWN={name}")],
            ephemeral: false,
            network: None,
        };
        let mut first = pool.take(&request("first")).await.unwrap();
        let mut second = pool.take(&request("second")).await.unwrap();
        assert_ne!(first.sandbox().id(), second.sandbox().id());
        let mut said = HashSet::new();
        for (started, name) in [(&mut first, "first"), (&mut second, "second")] {
            started.settled().await.unwrap();
            let script = "echo $OWN; hostname; head -c 16 /dev/urandom | od -An -tx1; cat /etc/machine-id";
            let out = run(started.sandbox(), &["sh", "-c", script]).await;
            let mut lines = out.lines();
            assert_eq!((lines.next(), lines.next()), (Some(name), Some(name)), "{out}");
            assert!(lines.all(|line| said.insert(line.to_owned())), "both machines have it: {out}");
        }
        // A name belongs to one sandbox at a time, and a machine that is refused leaves nothing.
        let refused = pool.take(&request("first")).await.unwrap_err().to_string();
        assert!(refused.contains("first") && refused.contains("already used"), "{refused}");

        // A machine that was handed out outlives the pool, and all others end with it.
        let first = first.detach();
        pool.filled().await.unwrap();
        drop(pool);
        assert!(all_end(&home).await, "{:?} outlive their pool", waiting(&home));
        assert_eq!(run(&first, &["echo", "alive"]).await, "alive\n");
        second.finish().await.unwrap();
        library.manager.remove("first", true).await.unwrap();
    });
    home.assert_nothing_left();
}

#[test]
fn machines_of_a_pool_restore_a_named_snapshot_while_it_exists() {
    let Some(home) = Home::with_kvm() else { return };
    let library = Library::of(&home, 128);
    let name = |text: &str| SandboxName::try_from(text.to_owned()).unwrap();
    library.block_on(async {
        let Library { manager, bundle, spec, .. } = &library;
        let env = vec!["OF=snapshot".to_owned(), "BOTH=snapshot".to_owned()];
        let original = manager.create(bundle, &SandboxSpec { env, ..spec.clone() }).await.unwrap();
        let _ = run(original.sandbox(), &["sh", "-c", "echo kept > /root/file"]).await;
        original.sandbox().snapshot(name("kept")).await.unwrap();
        original.finish().await.unwrap();

        let spec = SandboxSpec { start_from: StartFrom::Snapshot(name("kept")), ..spec.clone() };
        let pool = Pool::new(manager.clone(), bundle.clone(), spec, 1);
        pool.filled().await.unwrap();
        let request = PoolRequest { env: vec!["BOTH=own".to_owned()], ..PoolRequest::default() };
        let mut started = pool.take(&request).await.unwrap();
        started.settled().await.unwrap();
        let out = run(started.sandbox(), &["sh", "-c", "cat /root/file; echo $OF $BOTH"]).await;
        assert_eq!(out, "kept\nsnapshot own\n");
        started.finish().await.unwrap();

        // A machine that was armed from a file which was then changed is never handed out. (The
        // first memory file is that of the ready snapshot, which other tests use too.)
        pool.filled().await.unwrap();
        let memory = File::options().write(true).open(manager.root().join("snapshots/kept/memory.1")).unwrap();
        memory.write_all_at(b"evil", 1 << 20).unwrap();
        let refused = pool.take(&request).await.unwrap_err().to_string();
        assert!(refused.contains("was changed"), "{refused}");
        // Nor is a machine of a snapshot that was removed.
        manager.remove_snapshot("kept").unwrap();
        let refused = pool.take(&request).await.unwrap_err().to_string();
        assert!(refused.contains("kept"), "{refused}");
        drop(pool);
        assert!(all_end(&home).await, "{:?} outlive their pool", waiting(&home));
    });
    home.assert_nothing_left();
}
