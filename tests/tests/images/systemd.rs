//! An image whose command is systemd itself, from Debian's packages.

use crate::registry;
use sandboxvm_tests::home::{Home, Sandbox};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Where ring 0 of the guest is interpreted, systemd needs many minutes to load its units.
const STARTS_WITHIN: Duration = Duration::from_secs(40 * 60);

#[test]
#[ignore = "soak: installs a Debian with systemd, which starts for minutes where the kernel is interpreted"]
fn an_image_with_systemd_starts_its_services_and_shuts_down() {
    let Some(home) = Home::with_kvm() else { return };
    let (root, layout) = (home.scratch("systemd-root"), home.scratch("systemd-layout"));
    let target = root.display().to_string();
    let packages = "--include=systemd,systemd-sysv,dbus";
    let without_devices = "--customize-hook=rm -rf \"$1\"/dev/*";
    registry::run("mmdebstrap", &["--variant=minbase", packages, without_devices, "bookworm", &target]);
    registry::layout(&layout, &root, &["--config.cmd=/sbin/init"]);
    home.cli(["image", "load", "-i", &layout.display().to_string(), "--name", "systemd:1"]).run().succeeds();
    let created = home.cli(["run", "-d", "--name", "box", "-m", "512M", "--image", "systemd:1"]).run().succeeds();
    let sandbox = Sandbox::printed(&home, &created);

    let state = |name: &str| {
        let asked = home.cli(["exec", name, "systemctl", "is-system-running"]).deadline(STARTS_WITHIN).run();
        asked.out().trim().to_owned()
    };
    let began = Instant::now();
    let reached = loop {
        let now = state("box");
        if now == "running" || now == "degraded" {
            break now;
        }
        assert!(began.elapsed() < STARTS_WITHIN, "systemd is {now:?}");
        thread::sleep(Duration::from_secs(10));
    };
    let failed = sandbox.exec(["systemctl", "--failed", "--no-pager", "--plain", "--no-legend"]).run().succeeds().out();
    assert_eq!(reached == "running", failed.trim().is_empty(), "{reached}: {failed}");
    eprintln!("systemd is {reached}: {failed}");
    let copy = home.cli(["fork", "box"]).run().succeeds().out();
    assert_eq!(state(copy.trim()), reached);
    let stopped = home.cli(["stop", "-t", "600s", "box"]).deadline(STARTS_WITHIN).run().succeeds();
    assert_eq!(stopped.err(), "", "it shuts down by itself");
    home.cli(["rm", "-f", "box", copy.trim()]).run().succeeds();
    home.assert_nothing_left();
}
