//! The changes of a sandbox's disk as a layer, from a real guest.

use sandboxvm_archive::{Entry, Kind, Reader};
use sandboxvm_manager::{FileError, Sandbox};
use sandboxvm_tests::{
    home::{Home, SMALL},
    library::{Library, run},
};

async fn layer(sandbox: &Sandbox, max_bytes: u64) -> Result<Vec<u8>, FileError> {
    let mut changes = sandbox.disk_changes(max_bytes).await?;
    let mut all = Vec::new();
    while let Some(bytes) = changes.next().await? {
        all.extend(bytes);
    }
    Ok(all)
}

fn entries(layer: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(layer).keep_all_attributes();
    std::iter::from_fn(|| reader.next_entry().expect("the layer is an archive")).collect()
}

#[test]
#[ignore = "soak: a commit of a small image runs always"]
fn changes_of_the_disk_are_a_layer_with_whiteouts() {
    const CHANGE: &str = "rm /etc/passwd; rm -r /usr/share/doc /var/cache; mkdir /srv/new /var/cache; echo hi >/srv/new/a; \
                          touch /tmp/b; echo lost >/run/c; ln -s a /srv/new/link";
    let Some(home) = Home::with_kvm() else { return };
    let made = home.create(&["-m", SMALL, "--name", "changed"]);
    let library = Library::of(&home, 128);
    library.block_on(async {
        let sandbox = library.manager.find("changed").expect("it was created");
        let before = layer(&sandbox, 64 << 20).await.expect("it can be packed");
        let files: Vec<_> = entries(&before).into_iter().filter(|entry| entry.kind != Kind::Directory).collect();
        assert!(files.is_empty(), "an unchanged disk has no changed files: {files:?}");

        run(&sandbox, &["sh", "-c", CHANGE]).await;
        let all = layer(&sandbox, 64 << 20).await.expect("it can be packed");
        let paths: Vec<_> =
            entries(&all).into_iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect();
        for expected in ["etc/.wh.passwd", "srv/new/", "srv/new/a", "srv/new/link", "tmp/b", "var/cache/.wh..wh..opq"] {
            assert!(paths.iter().any(|path| path == expected), "{expected} is missing in {paths:?}");
        }
        assert!(!paths.iter().any(|path| path.starts_with("run/") || path == "etc/hostname"), "{paths:?}");
        assert_eq!(
            layer(&sandbox, 64 << 20).await.expect("it can be packed"),
            all,
            "the same disk gives the same bytes"
        );
        assert!(matches!(layer(&sandbox, 1024).await, Err(FileError::TooLarge(1024))));
    });
    made.remove();
    home.assert_nothing_left();
}
