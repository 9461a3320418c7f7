//! The egress process and its dialer, as a supervisor starts them, in a private network namespace, with a guest
//! on the frame socket that is made of smoltcp.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod guest;
pub mod sandbox;

use std::{env, process::Command};

/// Set for the process that runs in the namespace.
const INSIDE: &str = "SANDBOXVM_EGRESS_TEST";

/// Runs the rest of the test `name` in a network namespace with the addresses of documentation on its loopback interface.
/// Returns false in the process that only started it.
pub fn in_namespace(name: &str) -> bool {
    if is_inside() {
        return true;
    }
    run_in_namespace(&["--exact", name, "--nocapture", "--include-ignored"]);
    false
}

/// Runs this program with these arguments in such a namespace.
pub fn run_in_namespace(arguments: &[&str]) {
    let script = "ip link set lo up; for host in 1 2 3 4; do ip addr add 198.51.100.$host/32 dev lo; \
        ip addr add 2001:db8::$host/128 dev lo; done; \
        echo \"0 $groups\" >/proc/sys/net/ipv4/ping_group_range; \
        exec \"$@\"";
    // Root keeps its users, so that the processes get a separate one. The range is of groups that exist.
    let (namespaces, groups) = if rustix::process::geteuid().is_root() {
        (&["--net"][..], "2147483647")
    } else {
        (&["--map-root-user", "--net"][..], "0")
    };
    let status = Command::new("unshare")
        .args(namespaces)
        .args(["--", "sh", "-ec", script, "sh"])
        .arg(env::current_exe().expect("the path of this program"))
        .args(arguments)
        .env(INSIDE, "1")
        .env("groups", groups)
        .status()
        .expect("unshare");
    assert!(status.success(), "{arguments:?} failed in its namespace");
}

/// Returns true in the process that runs in the namespace.
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}
