//! The resolver's own process: confined, and after the end of its dialer.

use crate::{
    internet::{
        Internet,
        dialer::Dialer,
        nsd::{self, Nsd},
    },
    sandbox::{Answer, at, evil, listed, query, with_sandbox},
};
use domain::base::iana::{Rcode, Rtype};
use sandboxvm_egress::{dialing::Dialing, resolver::Resolver, session::Session, tls::trust::Trust};
use sandboxvm_protocol::egress::{DialerSettings, ResolverTransport};
use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

#[test]
fn a_lost_dialer_fails_questions_without_a_wait() {
    let Some(internet) = Internet::new() else { return };
    let _asked = evil(&internet, "8.8.8.8", |_| Vec::new());
    with_sandbox(listed(&["*.example"], &[]), &[at("8.8.8.8")], async |mut sandbox| {
        sandbox.dialer.process.kill().unwrap();
        sandbox.dialer.process.wait().unwrap();
        let begun = Instant::now();
        assert_eq!(sandbox.ask("a.example", Rtype::A).await.code, Rcode::SERVFAIL);
        assert!(begun.elapsed() < Duration::from_secs(1));
    });
}

/// What the resolver does with sockets of the dialer, it can do in a confined process.
#[test]
fn a_confined_process_resolves_names() {
    let Some(internet) = Internet::new() else { return };
    let _nsd = Nsd::start(&internet);
    let (dialer, requests) = Dialer::start(&[], &[at(nsd::AT)], DialerSettings::default());
    // SAFETY: the child has this thread alone, and the threads of the harness and of the internet wait and hold no lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let resolved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            sandboxvm_egress::confinement::confine_egress_process().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, resolve_over_both(requests));
        }));
        // SAFETY: ends the child without what the harness would do at its end.
        unsafe { libc::_exit(resolved.is_err().into()) };
    }
    let mut status = 0;
    // SAFETY: waits for the child of above.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    drop(dialer);
}

async fn resolve_over_both(requests: std::os::fd::OwnedFd) {
    let mut session = Session::new(1, Trust::default());
    session.configure(listed(&["*.example"], &[])).unwrap();
    let dialing = Dialing::new(requests).unwrap();
    let resolver = Resolver::new(dialing, Rc::new(RefCell::new(session)));
    // The second is too long for UDP.
    for (name, count) in [("www.example", 1), ("many.example", 120)] {
        let bytes = resolver.answer(&query(name, Rtype::A, None), ResolverTransport::Tcp).await.unwrap();
        assert_eq!(Answer::read(&bytes, name).addresses().len(), count);
    }
}
