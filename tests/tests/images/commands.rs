//! The commands that need no guest.

use crate::{registry, registry::Registry, small_image};
use sandboxvm_tests::home::Home;
use std::{fs, os::unix::fs::PermissionsExt};

#[test]
fn an_image_goes_through_a_registry_with_a_password_and_an_archive() {
    let Some(home) = Home::with_kvm() else { return };
    let config = home.scratch("config");
    let cli = |arguments: &[&str]| home.cli(arguments).env("XDG_CONFIG_HOME", &config).env("DOCKER_CONFIG", &config);
    let directory = tempfile::tempdir().unwrap();
    let passwords = directory.path().join("htpasswd").display().to_string();
    registry::run("htpasswd", &["-Bbc", &passwords, "user", "secret"]);
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {passwords}\n");
    let registry = Registry::start(directory, "", &auth);
    let (host, layout) = (registry.host(), small_image(&home));
    let name = format!("{host}/team/app:1");

    cli(&["image", "load", "-i", &layout.display().to_string(), "--name", &name]).run().succeeds();
    assert_eq!(cli(&["image", "ls", "-q"]).run().succeeds().out(), format!("{name}\n"));
    let pushed = cli(&["image", "push", &name]).run();
    pushed.fails_with(&["cannot reach", "--plain-http"]);
    let pushed = cli(&["image", "push", "--plain-http", &name]).run();
    pushed.fails_with(&["denies access", "no credentials are known", &format!("image login {host}")]);
    let login = ["image", "login", "--plain-http", &host, "-u", "user"];
    cli(&login).input("wrong\n").run().fails_with(&["denies access", "not valid"]);
    assert!(!config.join("sandboxvm/credentials.json").exists(), "rejected credentials are not kept");
    cli(&login).input("secret\n").run().succeeds();
    let mode = fs::metadata(config.join("sandboxvm/credentials.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    cli(&["image", "push", "--plain-http", &name]).run().succeeds();

    let archive = home.scratch("saved.tar").display().to_string();
    cli(&["image", "save", &name, "-o", &archive]).run().succeeds();
    let inspected = cli(&["image", "inspect", &name]).run().succeeds().json();
    assert_eq!(inspected["config"]["User"], "app");
    let listed = cli(&["image", "ls", "--json"]).run().succeeds().json();
    assert_eq!((&listed[0]["digest"], &listed[0]["reference"]), (&inspected["digest"], &inspected["references"][0]));
    assert_eq!(listed[0]["size_bytes"], inspected["layers"][0]["size"]);
    assert_eq!(cli(&["image", "rm", &name]).run().succeeds().out(), format!("{name}\n"));
    assert_eq!(cli(&["image", "ls", "-q"]).run().succeeds().out(), "");
    let blobs = fs::read_dir(home.path().join("images/blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), 0, "nothing needs the blobs of an image that was removed");

    let pulled = cli(&["image", "pull", "--plain-http", &name]).run().succeeds().out();
    assert_eq!(pulled, format!("{name} {}\n", inspected["digest"].as_str().unwrap()));
    cli(&["image", "rm", &name]).run().succeeds();
    // The file may be one that skopeo made of the same image: the store does not ask who wrote it.
    let loaded = cli(&["image", "load", "-i", &archive]).run().succeeds().out();
    assert!(loaded.starts_with(&format!("{name} sha256:")), "{loaded}");
    cli(&["image", "logout", &host]).run().succeeds();
    cli(&["image", "pull", "--plain-http", &name]).run().fails_with(&["denies access"]);
    cli(&["image", "prune", "--all"]).run().succeeds();
    assert_eq!(cli(&["image", "ls", "-q"]).run().succeeds().out(), "");
    home.assert_nothing_left();
}
