//! What docker makes of the same images, whichever program wrote them: docker, buildah, umoci or skopeo.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod common;

use common::{Described, Mounted, describe, fsck, oci::umoci, tar, write_image};
use std::{collections::BTreeMap, fs, path::Path, path::PathBuf, process::Command};

/// What docker puts into each container.
const OF_DOCKER: [&str; 10] = [
    ".dockerenv",
    "dev/console",
    "dev/pts",
    "dev/shm",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "sys",
];
/// The directories above, whose times it changes.
const CHANGED: [&str; 3] = ["", "dev", "etc"];

fn run(directory: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns a tree as far as `docker export` states it: whole seconds since 1970, and no attribute but capabilities.
fn as_exported(root: &Path) -> BTreeMap<PathBuf, Described> {
    let mut all = describe(root);
    all.retain(|path, _| !OF_DOCKER.iter().any(|of_docker| path == Path::new(of_docker)));
    for (path, file) in &mut all {
        let is_changed = CHANGED.iter().any(|changed| path == Path::new(changed));
        file.modified = if is_changed { (0, 0) } else { (file.modified.0.max(0), 0) };
        let capabilities = file.attributes.lines().filter(|line| line.starts_with("security.capability"));
        file.attributes = capabilities.collect::<Vec<_>>().join("\n");
    }
    all
}

/// Returns the layers in an archive of docker, the lowest first.
fn layers(directory: &Path, archive: &str) -> Vec<Vec<u8>> {
    let copied = directory.join(format!("{archive}.dir"));
    run(directory, &format!("skopeo copy -q docker-archive:{archive} dir:{}", copied.display()));
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(copied.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|layer| fs::read(copied.join(&layer["digest"].as_str().unwrap()["sha256:".len()..])).unwrap()).collect()
}

#[test]
#[ignore = "needs docker's daemon and buildah, which no other test does"]
fn mounted_images_equal_the_trees_that_docker_exports() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let long = "x".repeat(200);
    run(
        at,
        &format!(
            "mkdir lower middle upper context; cd lower
            mkdir -p bin usr/lib etc/deep/er gone opaque/old many nodes
            printf content >bin/tool; chmod 6755 bin/tool; ln bin/tool bin/other; ln -s ../bin/tool etc/link
            chown 1000:1001 etc/deep; chmod 1777 etc/deep; printf 1 >gone/file; printf 2 >opaque/old/file
            ln -s usr/lib lib; printf so >usr/lib/one; ln -s /{long}/{long} etc/long; printf 3 >'etc/ünï côde'
            truncate -s 5000000 holes; printf end | dd of=holes bs=1 seek=3000000 conv=notrunc 2>/dev/null
            for i in $(seq 100); do printf $i >many/{long}$i; done; : >empty; printf 4 >etc/replaced
            mknod nodes/null c 1 3; mknod nodes/disk b 259 70000; mkfifo nodes/fifo; mkdir etc/kind; printf 5 >etc/kind/x
            cp /bin/true bin/capable; setcap cap_net_raw+ep bin/capable; setfattr -n user.note -v hello bin/tool
            touch -d '1960-01-01 00:00:00.5' empty; cp -a bin ../context/bin
            cd ../middle; mkdir -p opaque gone etc usr/lib; : >opaque/.wh..wh..opq; printf new >opaque/new
            : >.wh.gone; printf back >gone/back; printf 66666 >etc/replaced; : >.wh.many; printf two >usr/lib/two
            cd ../upper; mkdir -p etc bin; : >etc/.wh.kind; : >bin/.wh.tool; printf n >bin/new
            printf 'FROM scratch\\nADD lower.tar /\\nCOPY --chown=7:8 bin /copied/\\nADD upper.tar /more/\\n' >../context/Dockerfile"
        ),
    );
    let tars = ["lower", "middle", "upper"].map(|name| {
        let tar = tar(&at.join(name), &["--format=pax", "--xattrs", "--xattrs-include=*"]);
        fs::write(at.join("context").join(format!("{name}.tar")), &tar).unwrap();
        tar
    });
    umoci(&tars, at);
    run(
        at,
        "skopeo copy -q oci:layout:test docker-archive:umoci.tar:sandboxvm-test/umoci:1
        docker build -q -t sandboxvm-test/docker:1 context; docker save sandboxvm-test/docker:1 -o docker.tar
        buildah() { command buildah --storage-driver vfs --root $PWD/storage --runroot $PWD/running \"$@\"; }
        container=$(buildah from scratch); buildah add -q $container context/lower.tar /
        buildah copy -q $container context/bin /copied; buildah config --cmd /bin/tool $container
        buildah commit -q $container oci-archive:$PWD/buildah-oci.tar:built
        skopeo copy -q oci-archive:buildah-oci.tar docker-archive:buildah.tar:sandboxvm-test/buildah:1",
    );
    for (program, least) in [("umoci", 25), ("docker", 130), ("buildah", 130)] {
        let image = at.join(format!("{program}.erofs"));
        write_image(&layers(at, &format!("{program}.tar")), &image);
        fsck(&image);
        let name = format!("sandboxvm-test/{program}:1");
        run(
            at,
            &format!(
                "docker load -q -i {program}.tar; container=$(docker create {name} x); mkdir {program}
                docker export $container | tar -C {program} --xattrs --xattrs-include='*' --numeric-owner -xpf -
                docker rm $container; docker rmi {name}"
            ),
        );
        let expected = as_exported(&at.join(program));
        let mounted = Mounted::new(&image).expect("this test needs a host that mounts EROFS");
        let found = as_exported(&mounted.root);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{program}");
        for (path, expected) in &expected {
            assert_eq!(found[path], *expected, "{program}: {}", path.display());
        }
        assert!(expected.len() > least, "{program}: {}", expected.len());
    }
}
