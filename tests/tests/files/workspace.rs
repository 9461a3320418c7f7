//! Sandboxes with a workspace, from real guests: what they see of it, the layer of what they changed,
//! and what copies of their machines have.

use sandboxvm_archive::{Kind, Reader};
use sandboxvm_manager::{CreateError, ResetDone, Sandbox, SandboxName, SandboxSpec, StartFrom, State, WorkspaceSpec};
use sandboxvm_tests::{
    home::Home,
    library::{Library, execute, run},
};
use sandboxvm_workspace::{CopiedIn, CopyOptions, copy_in};
use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

const MAX_LAYER: u64 = 64 << 20;

/// A directory of the host, copied in.
struct Project {
    directory: tempfile::TempDir,
    copied: CopiedIn,
}

impl Project {
    fn new(home: &Home, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("it is in the directory")).expect("a new directory");
            fs::write(path, content).expect("a new file");
        }
        let cache = home.path().join("workspaces");
        let copied = copy_in(directory.path(), &cache, (1000, 50), &CopyOptions::default()).expect("it is copied");
        Self { directory, copied }
    }

    fn spec(&self, at: &str) -> WorkspaceSpec {
        WorkspaceSpec {
            slots: self.copied.layers.clone(),
            index: Some(self.copied.index.clone()),
            at: at.to_owned(),
            owner: (1000, 50),
            origin: self.directory.path().to_owned(),
        }
    }

    fn content(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.directory.path().to_owned()];
        while let Some(path) = left.pop() {
            for entry in fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()) {
                if entry.is_dir() {
                    left.push(entry);
                } else {
                    found.insert(entry.clone(), fs::read_to_string(&entry).expect("text"));
                }
            }
        }
        found
    }
}

async fn layer(sandbox: &Sandbox) -> Vec<u8> {
    let mut changes = sandbox.workspace_changes(MAX_LAYER).await.expect("it has a workspace");
    let mut all = Vec::new();
    while let Some(bytes) = changes.next().await.expect("it can be packed") {
        all.extend(bytes);
    }
    all
}

/// Returns the entries of a layer that are not directories, with their content.
fn files(layer: &[u8]) -> Vec<(String, String)> {
    let mut reader = Reader::new(layer);
    let mut files = Vec::new();
    while let Some(entry) = reader.next_entry().expect("the layer is an archive") {
        if entry.kind == Kind::Directory {
            continue;
        }
        let mut content = vec![0; 4096];
        let length = if matches!(entry.kind, Kind::File { .. }) {
            reader.read_content(&mut content).expect("the content is there")
        } else {
            0
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        files.push((text(&entry.path), text(&content[..length])));
    }
    files
}

fn expected(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

#[test]
fn a_workspace_takes_the_writes_and_its_layer_has_exactly_these() {
    const CHANGE: &str = "set -e; cat a old/b; echo more >>a; rm c; rm -r old; mkdir new; echo d >new/d";
    let Some(home) = Home::with_kvm() else { return };
    let library = Library::of(&home, 128);
    let project = Project::new(&home, &[("a", "a\n"), ("c", "c\n"), ("old/b", "b\n"), ("same", "same\n")]);
    let before = project.content();
    library.block_on(async {
        let workspace = Some(project.spec("/work/my project"));
        let spec = SandboxSpec { workspace, start_from: StartFrom::Boot, ..library.spec.clone() };
        let started = library.manager.create(&library.bundle, &spec).await.expect("it boots");
        let sandbox = started.detach();
        let in_it = |script: &str| format!("cd '/work/my project'; {script}");
        let sh = |script: &str| ["sh".to_owned(), "-c".to_owned(), in_it(script)];
        let ran = async |sandbox: &Sandbox, script: &str| {
            let command = sh(script);
            run(sandbox, &command.each_ref().map(String::as_str)).await
        };
        assert_eq!(ran(&sandbox, "stat -c '%u:%g %a %n' . a").await, "1000:50 755 .\n1000:50 644 a\n");
        assert_eq!(files(&layer(&sandbox).await), [], "nothing was changed");
        assert_eq!(ran(&sandbox, CHANGE).await, "a\nb\n");
        let changed = [(".wh.c", ""), (".wh.old", ""), ("a", "a\nmore\n"), ("new/d", "d\n")];
        assert_eq!(files(&layer(&sandbox).await), expected(&changed));
        // No process sees the disks and the upper directory, and none writes to a slot.
        let mounts = run(&sandbox, &["cat", "/proc/mounts"]).await;
        assert!(!mounts.lines().any(|line| ["ext4", "erofs"].contains(&line.split(' ').nth(2).unwrap_or_default())));
        let write = ["sh", "-c", "dd if=/dev/zero of=/dev/vdd bs=4096 count=1 conv=fsync"];
        let (status, _) = execute(&sandbox, &write).await;
        assert_ne!(status, sandboxvm_manager::ExitStatus::Code(0), "a slot was written");
        assert_eq!(ran(&sandbox, "cat same").await, "same\n");

        let forked = sandbox.fork(1).await.expect("it is forked");
        let copy = &forked.copies[0];
        ran(copy, "rm same; cat a").await;
        ran(&sandbox, "echo mine >mine").await;
        let of_copy = [(".wh.c", ""), (".wh.old", ""), (".wh.same", ""), ("a", "a\nmore\n"), ("new/d", "d\n")];
        assert_eq!(files(&layer(copy).await), expected(&of_copy));
        library.manager.remove(copy.id().as_str(), true).await.expect("it can be removed");

        let stored = sandbox.store_workspace_changes(MAX_LAYER).await.expect("it can be stored");
        assert_eq!((stored.written, stored.removed), (3, 2));
        sandbox.kill().await.expect("it ends");
        assert!(matches!(sandbox.state(), Ok(State::Exited { .. })));
        let mut kept = Vec::new();
        let file = sandbox.stored_workspace_changes().expect("it can be opened").expect("it was stored");
        { file }.read_to_end(&mut kept).expect("it can be read");
        let of_all = [(".wh.c", ""), (".wh.old", ""), ("a", "a\nmore\n"), ("mine", "mine\n"), ("new/d", "d\n")];
        assert_eq!(files(&kept), expected(&of_all));
        assert!(sandbox.workspace_index().expect("it can be opened").is_some());
        library.manager.remove(sandbox.id().as_str(), false).await.expect("it can be removed");
    });
    assert_eq!(project.content(), before, "the host's files are as they were");
    fs::remove_dir_all(home.path().join("workspaces")).expect("our own directory");
    home.assert_nothing_left();
}

#[test]
#[ignore = "soak: a machine for each kind of start"]
fn a_ready_snapshot_takes_any_files_and_copies_keep_theirs() {
    let Some(home) = Home::with_kvm() else { return };
    let library = Library::of(&home, 128);
    let Library { manager, bundle, .. } = &library;
    let kept = SandboxName::try_from("kept".to_owned()).expect("a name");
    let cat = ["sh", "-c", "cat /workspace/*"];
    library.block_on(async {
        // Both are restored from the same snapshot, whose slot was empty.
        let mut sandboxes = Vec::new();
        for content in ["first\n", "second\n"] {
            let project = Project::new(&home, &[("file", content)]);
            let spec = SandboxSpec { workspace: Some(project.spec("/workspace")), ..library.spec.clone() };
            let sandbox = manager.create(bundle, &spec).await.expect("it is restored").detach();
            assert_eq!(run(&sandbox, &cat).await, content);
            sandboxes.push(sandbox);
        }
        let [first, second] = <[Sandbox; 2]>::try_from(sandboxes).expect("two");
        assert_eq!(fs::read_dir(home.path().join("ready")).expect("a home").flatten().filter(is_directory).count(), 1);

        run(&second, &["sh", "-c", "echo changed >/workspace/changed"]).await;
        second.snapshot(kept.clone()).await.expect("it is saved");
        let spec = SandboxSpec { start_from: StartFrom::Snapshot(kept.clone()), ..library.spec.clone() };
        let restored = manager.create(bundle, &spec).await.expect("it is restored").detach();
        assert_eq!(run(&restored, &cat).await, "changed\nsecond\n");
        assert_eq!(restored.workspace(), second.workspace());
        let of_another = WorkspaceSpec { slots: vec!["/dev/null".into()], ..Project::new(&home, &[]).spec("/w") };
        let spec = SandboxSpec { workspace: Some(of_another), ..spec };
        assert!(matches!(manager.create(bundle, &spec).await, Err(CreateError::Workspace(_))));

        // A reset keeps the files of the workspace, and loses its changes.
        let done = second.reset(bundle, None, library.spec.boot_timeout, || ()).await.expect("it is reset");
        assert!(matches!(done, ResetDone::InPlace(_)));
        assert_eq!(run(&second, &cat).await, "second\n");
        second.reset(bundle, Some(&kept), library.spec.boot_timeout, || ()).await.expect("it has this workspace");
        assert_eq!(run(&second, &cat).await, "changed\nsecond\n");
        let refused = first.reset(bundle, Some(&kept), library.spec.boot_timeout, || ()).await.unwrap_err().to_string();
        assert!(refused.contains("do not have the same workspace"), "{refused}");
        assert_eq!(run(&first, &cat).await, "first\n");
        for sandbox in [first, second, restored] {
            manager.remove(sandbox.id().as_str(), true).await.expect("it can be removed");
        }
        manager.remove_snapshot("kept").expect("it can be removed");
    });
    fs::remove_dir_all(home.path().join("workspaces")).expect("our own directory");
    home.assert_nothing_left();
}

fn is_directory(entry: &fs::DirEntry) -> bool {
    Path::is_dir(&entry.path())
}
