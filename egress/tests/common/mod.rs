//! The egress process and its dialer, as a supervisor starts them, in a network namespace of the test's own, with a guest
//! on the frame socket that is made of smoltcp.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod guest;
pub mod sandbox;

use std::{env, process::Command};

/// Set in the process that runs in the namespace.
const INSIDE: &str = "SANDBOXVM_EGRESS_TEST";

/// Runs the rest of the test `name` in a network namespace with the addresses of documentation on its loopback interface.
/// Returns false in the process that only started it.
pub fn in_namespace(name: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let script = "ip link set lo up; for host in 1 2 3 4; do ip addr add 198.51.100.$host/32 dev lo; \
        ip addr add 2001:db8::$host/128 dev lo; done; \
        echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range; \
        exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--map-root-user", "--net", "--", "sh", "-ec", script, "sh"])
        .arg(env::current_exe().expect("the path of this program"))
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare");
    assert!(status.success(), "{name} failed in its namespace");
    false
}
