//! Sandboxes of an image.

use crate::{registry::Registry, small_image};
use sandboxvm_tests::home::{Home, SMALL, Sandbox};

#[test]
fn a_sandbox_is_what_its_image_says_unless_its_user_says_otherwise() {
    let Some(home) = Home::with_kvm() else { return };
    let registry = Registry::start(tempfile::tempdir().unwrap(), "", "");
    registry.fill(&small_image(&home), "test", "app");
    let image = format!("{}/app", registry.host());
    let machine = ["-m", SMALL, "--image", &image];

    home.cli([&["run", "--pull", "never"][..], &machine].concat()).run().fails_with(&["has no image", "image pull"]);
    let said = home.cli([&["run", "--plain-http"][..], &machine].concat()).run().succeeds().out();
    assert_eq!(said, "uid=1001(app) gid=1002(app) groups=1002(app),1003(extra)\n/srv/new\nimage\n");
    // From here on nothing is asked of the registry.
    drop(registry);
    let script = "id -u; pwd; echo $A";
    let own = ["-e", "A=own", "--user", "0", "-w", "/etc", script];
    let said = home.cli([&["run"][..], &machine, &own].concat()).run().succeeds().out();
    assert_eq!(said, "0\n/etc\nown\n");
    let said = home.cli([&["run"][..], &machine, &["--entrypoint", "/bin/cat", "/etc/group"]].concat()).run();
    assert!(said.succeeds().out().ends_with("extra:x:1003:app\n"));

    // `stop` sends the stop signal of the image to the init only, which its namespaces end with.
    let init = ["--name", "init", "-u", "root", "--entrypoint", "/sbin/init"];
    let mut running = home.cli([&["run"][..], &machine, &init].concat()).spawn();
    running.wait_for_stdout("ready\n");
    let beside = "cat /proc/1/comm; ls -d /sys/fs/cgroup/service; echo $container";
    let said = home.cli(["exec", "-u", "root", "init", "sh", "-c", beside]).run().succeeds().out();
    assert_eq!(said, "init\n/sys/fs/cgroup/service\nsandboxvm\n");
    home.cli(["stop", "init"]).run().succeeds();
    let ended = running.finish().exits(7);
    assert_eq!(ended.out(), "1 sandboxvm\n0::/\n/data/volume\nready\nstopped\n", "{ended:?}");

    let created = home.cli([&["create", "--name", "made"][..], &machine].concat()).run().succeeds();
    let made = Sandbox::printed(&home, &created);
    assert_eq!(made.exec(["sh", "-c", script]).run().succeeds().out(), "1001\n/srv/new\nimage\n");
    let _ = made.exec(["-u", "root", "--", "sh", "-c", "touch /tmp/kept; rm /etc/group"]).run().succeeds();
    home.cli(["commit", "made", "app:changed"]).run().succeeds();
    home.cli(["image", "rm", &image]).run().succeeds();
    let changed = ["run", "-m", SMALL, "--image", "app:changed", "id -u; cat /etc/group || echo gone; echo /tmp/*"];
    assert_eq!(home.cli(changed).run().succeeds().out(), "1001\ngone\n/tmp/kept\n");
    let layers = home.cli(["image", "inspect", "app:changed"]).run().succeeds().json();
    assert_eq!(layers["layers"].as_array().map(Vec::len), Some(2), "{layers}");
    home.cli(["image", "rm", "app:changed"]).run().succeeds();

    let said = made.exec(["sh", "-c", "touch /tmp/x; echo /tmp/*"]).run().succeeds().out();
    assert_eq!(said, "/tmp/kept /tmp/x\n", "a sandbox does not need its image");
    made.remove();
    let freed = home.cli(["image", "prune"]).run().succeeds().out();
    assert!(!freed.starts_with("deleted 0 files"), "the layers stayed as long as a sandbox was there: {freed}");
    home.assert_nothing_left();
}
