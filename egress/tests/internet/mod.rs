//! Two network namespaces of a test: that of the calling thread, which is the host's, and one with public addresses, which
//! is the internet. Processes that the thread starts are in the host's.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

pub mod dialer;
pub mod nsd;
pub mod proxies;

use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use std::{fs, process::Command, sync::mpsc, thread};

type Job = Box<dyn FnOnce() + Send>;

/// Addresses of the internet.
pub const PUBLIC: [&str; 6] =
    ["1.1.1.1/32", "8.8.8.8/32", "9.9.9.9/32", "203.1.2.3/32", "2606:4700::1/128", "2606:4700::2/128"];

/// Address of the host, of its neighbour, and one that the host's kernel takes for its own by a route alone.
pub const HOST: &str = "192.0.2.1";
pub const NEIGHBOUR: &str = "192.0.2.2";
pub const ROUTED_HERE: &str = "5.5.1.2";

/// The namespace of the internet: a thread that is in it.
pub struct Internet {
    jobs: mpsc::Sender<Job>,
}

impl Internet {
    /// Makes both namespaces. None if this is not root.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can make network namespaces without a user namespace");
            return None;
        }
        unshare();
        let (jobs, receiver) = mpsc::channel::<Job>();
        let (sender, thread) = mpsc::channel();
        thread::spawn(move || {
            unshare();
            sender.send(gettid().as_raw_nonzero()).unwrap();
            for job in receiver {
                job();
            }
        });
        let internet = Self { jobs };
        let thread = thread.recv().unwrap();
        ip("link set lo up");
        ip(&format!("link add h0 type veth peer name i0 netns {thread}"));
        ip("addr add 192.0.2.1/24 dev h0");
        ip("addr add fd00:1::1/64 dev h0 nodad");
        ip("link set h0 up");
        internet.run(|| {
            ip("link set lo up");
            ip("addr add 192.0.2.2/24 dev i0");
            ip("addr add fd00:1::2/64 dev i0 nodad");
            ip("link set i0 up");
            for address in PUBLIC {
                ip(&format!("addr add {address} dev lo"));
            }
            for address in ["10.9.9.9/32", "169.254.169.254/32"] {
                ip(&format!("addr add {address} dev lo"));
            }
        });
        ip("route add default via 192.0.2.2");
        ip("-6 route add default via fd00:1::2");
        ip("route add local 5.5.0.0/16 dev lo");
        ip("route add blackhole 7.7.7.0/24");
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
        Some(internet)
    }

    /// Does `job` in the internet. Sockets and processes that it makes stay there.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(sender.send(job())))).unwrap();
        result.recv().expect("the job has not panicked")
    }
}

fn unshare() {
    // SAFETY: the flag does not unshare the file table, so no descriptor changes meaning.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
}

/// Runs ip(8) in the namespace of this thread.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}
