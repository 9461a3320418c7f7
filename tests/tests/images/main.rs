//! Container images: from a registry to running processes.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod building;
mod commands;
mod interrupted_builds;
#[path = "../../host/registry.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod registry;
mod running;
mod systemd;

use sandboxvm_tests::home::Home;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

/// An init that says what it finds, and ends at the stop signal of the image.
const INIT: &str = "#!/bin/sh\n\
    trap 'echo stopped; exit 7' USR1\n\
    mkdir /sys/fs/cgroup/service\n\
    echo $$ $container; cat /proc/self/cgroup; ls -d /data/volume /dev/vd* 2>/dev/null; echo ready\n\
    while :; do sleep 1000 & wait; done\n";

/// Makes an OCI layout with an image of busybox, its user `app`, a working directory that no layer has, and a
/// command that tells what it sees.
fn small_image(home: &Home) -> PathBuf {
    let root = home.scratch("root");
    for directory in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    for applet in ["sh", "cat", "id", "ls", "mkdir", "rm", "sleep", "touch", "wc"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:1001:1002::/tmp:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1002:\nextra:x:1003:app\n").unwrap();
    fs::create_dir(root.join("sbin")).unwrap();
    fs::write(root.join("sbin/init"), INIT).unwrap();
    fs::set_permissions(root.join("sbin/init"), fs::Permissions::from_mode(0o755)).unwrap();
    let layout = home.scratch("layout");
    registry::layout(
        &layout,
        &root,
        &[
            "--config.user=app",
            "--config.env=A=image",
            "--config.env=PATH=/bin",
            "--config.workingdir=/srv/new",
            "--config.volume=/data/volume",
            "--config.stopsignal=SIGUSR1",
            "--config.entrypoint=/bin/sh",
            "--config.entrypoint=-c",
            "--config.cmd=id; pwd; echo $A",
        ],
    );
    layout
}
