//! Only the owner can read the files that commands create in a home, and the owner can use them,
//! whatever the umask is.

use sandboxvm_tests::home::{Home, SMALL};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
    process::{Command, Stdio},
    thread,
};

const UMASKS: [&str; 4] = ["000", "022", "077", "777"];

/// Runs `sandboxvm` in `home` from a shell with this umask, and returns its output.
fn cli(home: &Home, at: &Path, umask: &str, arguments: &[&str]) -> String {
    let mut command = shell(home, at, umask, arguments);
    let out = command.output().expect("a shell can be run");
    assert!(out.status.success(), "umask {umask}, {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

fn shell(home: &Home, at: &Path, umask: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(&home.artefacts().program).args(arguments);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("SANDBOXVM_HOME", at).env("SANDBOXVM_BUNDLE", &home.artefacts().bundle);
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// The disks that all sandboxes share are second names of files of the bundle, whose owner chose
/// their mode.
fn is_of_the_bundle(path: &Path, about: &fs::Metadata) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    about.is_file() && about.nlink() > 1 && matches!(name, Some("agent" | "image"))
}

/// Asserts that only the owner can use everything below `path`. Returns the number of files and
/// directories.
fn assert_private(path: &Path, umask: &str) -> usize {
    let about = fs::symlink_metadata(path).expect("the file exists");
    let (kind, mode) = (about.file_type(), about.mode() & 0o7777);
    let shown = || format!("umask {umask}: {} has mode {mode:o}", path.display());
    if kind.is_dir() {
        assert_eq!(mode, 0o700, "{}", shown());
        let entries = fs::read_dir(path).expect("the directory can be read").flatten();
        return 1 + entries.map(|entry| assert_private(&entry.path(), umask)).sum::<usize>();
    }
    if is_of_the_bundle(path, &about) {
        assert_eq!(mode & 0o022, 0, "{}", shown());
    } else if kind.is_file() {
        assert!(matches!(mode, 0o600 | 0o400), "{}", shown());
    } else if kind.is_socket() {
        assert_eq!(mode, 0o600, "{}", shown());
    } else {
        assert!(kind.is_symlink(), "{}", shown());
    }
    1
}

#[test]
fn modes_of_all_files_in_a_home_are_independent_of_the_umask() {
    let Some(home) = Home::with_kvm() else { return };
    thread::scope(|scope| {
        for umask in UMASKS {
            let home = &home;
            scope.spawn(move || {
                let fresh = home.scratch(&format!("new-{umask}"));
                cli(home, &fresh, umask, &["key", "create", "one"]);
                cli(home, &fresh, umask, &["ls"]);
                assert!(assert_private(&fresh, umask) > 12);
                serve(home, &fresh, umask);
            });
        }
    });
    // With real sandboxes only the extreme umasks are tested.
    for umask in ["000", "777"] {
        let Some(home) = Home::with_kvm() else { return };
        let at = home.path();
        let run = |arguments: &[&str]| cli(&home, &at, umask, arguments);
        run(&["create", "-m", SMALL, "--name", "demo", "--ttl", "1h", "-p", "80"]);
        run(&["exec", "demo", "--", "true"]);
        run(&["snapshot", "create", "demo", "kept"]);
        run(&["fork", "demo"]);
        run(&["reset", "demo"]);
        run(&["pause", "demo"]);
        run(&["create", "--from", "kept", "--name", "copy"]);
        run(&["audit", "verify"]);
        assert!(assert_private(&at, umask) > 50);
        let into = home.scratch("into");
        run(&["exec", "copy", "--", "sh", "-c", "mkdir -m 777 /tmp/d; echo x >/tmp/d/f; chmod 777 /tmp/d/f"]);
        run(&["cp", "copy:/tmp/d", into.to_str().expect("UTF-8")]);
        let allowed = 0o777 & !u32::from_str_radix(umask, 8).expect("octal");
        assert_eq!(fs::metadata(&into).expect("the file exists").mode() & 0o7777, allowed);
        run(&["prune"]);
    }
}

/// Starts a server, and ends it when it listens.
fn serve(home: &Home, at: &Path, umask: &str) {
    let arguments = ["serve", "--api", "127.0.0.1:0", "--sandboxes", "127.0.0.1:0"];
    let mut command = shell(home, at, umask, &arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a shell can be run");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("stdout is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)
        .expect("the server prints its address");
    assert!(line.contains("E2B_API_URL"), "{line}");
    assert_private(at, umask);
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
}
