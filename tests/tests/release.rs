//! The Debian package in a Debian that has nothing but apt: what a user installs, uses, upgrades and purges.

use sandboxvm_tests::artefacts::kvm_is_wanted;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Makes the directory `$1` the root of new namespaces, with the devices that a machine has, and runs `/session`.
const ENTER: &str = r#"
set -eu
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mkdir -p "$root/old"
mount -t tmpfs -o mode=755 none "$root/dev"
for device in null zero random urandom full tty kvm; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs none "$root/dev/shm"
mount -t devpts none "$root/dev/pts"
ln -s /proc/self/fd "$root/dev/fd"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
cd "$root"
pivot_root . old
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# With the host's program: the clean Debian has none.
chroot old umount -l /
exec chroot . /bin/sh -eux /session
"#;

/// What the user does. Each line that begins with a name is looked for below.
const SESSION: &str = r#"
no() { if "$@"; then exit 1; fi; }
no command -v cc
DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet /sandboxvm.deb
sandboxvm doctor
echo "first: $(sandboxvm run -- python3 -c 'print(6 * 7)')"
test -s /usr/share/man/man1/sandboxvm-run.1.gz
test -s /usr/share/bash-completion/completions/sandboxvm
grep -q '^ExecStart=/usr/bin/sandboxvm serve' /usr/lib/systemd/system/sandboxvm.service
no grep -rq /usr/local /usr/lib/systemd/system/sandboxvm.service
getent passwd sandboxvm-http
echo '# of the operator' >>/etc/sandboxvm/server.toml
sandboxvm create --name kept
sandboxvm exec kept -- sh -c 'echo before >/root/file'
# An upgrade replaces every file below a sandbox that runs.
dpkg --install /sandboxvm.deb
echo "upgraded: $(sandboxvm exec kept -- cat /root/file)"
tail -n 1 /etc/sandboxvm/server.toml
sandboxvm snapshot create kept snap
sandboxvm rm -f kept
dpkg --remove sandboxvm
test -e /etc/sandboxvm/server.toml
dpkg --purge sandboxvm
no test -e /etc/sandboxvm/server.toml
no test -e /usr/lib/sandboxvm
echo "kept: $(ls /var/lib/sandboxvm/snapshots)"
# A purge without a terminal must not have asked, nor deleted.
dpkg --install /sandboxvm.deb
echo "again: $(sandboxvm run --from snap -- cat /root/file)"
"#;

fn stated(name: &str) -> PathBuf {
    let path = env::var_os(name).map(PathBuf::from);
    path.unwrap_or_else(|| panic!("scripts/test makes the package and sets {name}: scripts/lib/package.sh"))
}

#[test]
fn the_package_is_installed_used_upgraded_and_purged_in_a_clean_debian() {
    if !kvm_is_wanted() {
        return;
    }
    let (package, archive) = (stated("SANDBOXVM_DEB"), stated("SANDBOXVM_CLEAN_ROOT"));
    let root = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(root.path()).status().unwrap();
    assert!(unpacked.success());
    fs::copy(&package, root.path().join("sandboxvm.deb")).unwrap();
    fs::write(root.path().join("session"), SESSION).unwrap();
    let output = enter(root.path());
    for line in ["first: 42", "upgraded: before", "# of the operator", "kept: snap", "again: before"] {
        assert!(output.lines().any(|found| found == line), "{line} is missing:\n{output}");
    }
    assert!(output.contains("/var/lib/sandboxvm is kept"), "{output}");
}

/// Runs the session with `root` as its root, in namespaces that end with it. Returns its output.
fn enter(root: &Path) -> String {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &format!("{{ {ENTER}\n}} 2>&1"), "sh"]);
    // Nothing of this host's sandboxvm.
    unshare.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = unshare.arg(root).stdin(Stdio::null()).output().expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}
