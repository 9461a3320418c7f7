//! What a guest may ask, and which of the addresses in an answer it gets.

use crate::{
    internet::{
        Internet,
        nsd::{self, Nsd},
    },
    sandbox::{answer_to, at, evil, listed, reason, with_sandbox},
};
use domain::base::iana::{Rcode, Rtype};
use sandboxvm_protocol::egress::{Decided, HostName, NetworkSettings, Reach};
use std::net::IpAddr;

#[test]
fn names_are_resolved_and_pinned_under_the_name_that_was_asked_for() {
    let Some(internet) = Internet::new() else { return };
    let _nsd = Nsd::start(&internet);
    with_sandbox(listed(&["*.example"], &["secret.example"]), &[at(nsd::AT)], async |sandbox| {
        let answer = sandbox.ask("WWW.example", Rtype::A).await;
        assert_eq!((answer.code, answer.addresses()), (Rcode::NOERROR, vec!["1.1.1.1".parse().unwrap()]));
        assert_eq!(answer.records[0].0, "WWW.example");
        let answer = sandbox.ask("www.example", Rtype::AAAA).await;
        assert_eq!(answer.addresses(), ["2606:4700::1".parse::<IpAddr>().unwrap()]);
        // A chain of names: the first alone is pinned, and the records of each are there.
        let answer = sandbox.ask("chain.example", Rtype::A).await;
        let types: Vec<_> = answer.records.iter().map(|record| record.2).collect();
        assert_eq!(types, [Rtype::CNAME, Rtype::CNAME, Rtype::A]);
        assert_eq!(sandbox.pinned("1.1.1.1"), ["www.example", "chain.example"]);
        // The name that was asked for decides, also where it leads to one that is denied.
        assert_eq!(sandbox.ask("to-secret.example", Rtype::A).await.code, Rcode::NOERROR);
        assert_eq!(sandbox.pinned("1.1.1.1"), ["www.example", "chain.example", "to-secret.example"]);
        assert_eq!(sandbox.ask("secret.example", Rtype::A).await.code, Rcode::NXDOMAIN);
        // Lives are no longer than those of pins.
        for (name, ttl) in [("short.example", 0..=0), ("long.example", 3590..=3600), ("www.example", 590..=600)] {
            let found = sandbox.ask(name, Rtype::A).await.records[0].1;
            assert!(ttl.contains(&found), "{name} {found}");
        }
        for (name, rtype, data) in [
            ("txt.example", Rtype::TXT, &b"\x09some text"[..]),
            ("mail.example", Rtype::MX, b"\0\x0a\x03www\x07example\0"),
            ("_x._tcp.example", Rtype::SRV, b"\0\x01\0\x02\x01\xbb\x03www\x07example\0"),
            // Without `ech`, `ipv4hint` and `ipv6hint`.
            ("svc.example", Rtype::HTTPS, b"\0\x01\0\0\x01\0\x03\x02h2"),
        ] {
            let answer = sandbox.ask(name, rtype).await;
            assert_eq!(answer.records.iter().map(|record| &record.3[..]).collect::<Vec<_>>(), [data], "{name}");
        }
        for (name, rtype, code) in [
            ("missing.example", Rtype::A, Rcode::NXDOMAIN),
            ("txt.example", Rtype::A, Rcode::NOERROR),
            ("www.example", Rtype::DNSKEY, Rcode::NOERROR),
            ("www.example", Rtype::ANY, Rcode::REFUSED),
        ] {
            let answer = sandbox.ask(name, rtype).await;
            assert_eq!((answer.code, answer.records.len()), (code, 0), "{name}");
        }
        let records = sandbox.records();
        let missing = records.iter().find(|record| record.name == "missing.example").unwrap();
        assert_eq!(missing.decided, Decided::Allowed(Some("*.example".to_owned())));
    });
}

#[test]
fn a_refused_name_reaches_no_other_resolver() {
    let Some(internet) = Internet::new() else { return };
    let asked = evil(&internet, "8.8.8.8", |query| vec![answer_to(query, 1)]);
    with_sandbox(
        listed(&["good.example", "*.good.example"], &["bad.good.example"]),
        &[at("8.8.8.8")],
        async |sandbox| {
            for name in
                ["bad.good.example", "BAD.Good.Example", "example", "good.example.evil.example", "data.evil.example"]
            {
                for rtype in [Rtype::A, Rtype::AAAA, Rtype::TXT, Rtype::HTTPS, Rtype::MX, Rtype::NS, Rtype::DS] {
                    let answer = sandbox.ask(name, rtype).await;
                    assert_eq!(answer.code, Rcode::NXDOMAIN, "{name}");
                    assert!(["a rule denies it", "no rule allows it"].contains(&answer.reason.unwrap().as_str()));
                }
            }
            assert!(asked.try_recv().is_err());
            assert_eq!(sandbox.session.borrow().counters.refused, 35);
            assert!(sandbox.records().iter().any(|record| record.name == "data.evil.example" && record.question == 16));
            assert_eq!(sandbox.ask("a.good.example", Rtype::A).await.code, Rcode::NOERROR);
            assert!(asked.try_recv().unwrap().eq_ignore_ascii_case("a.good.example"));
            // New settings hold for answers that are kept.
            sandbox.session.borrow_mut().configure(listed(&["other.example"], &[])).unwrap();
            assert_eq!(sandbox.ask("a.good.example", Rtype::A).await.code, Rcode::NXDOMAIN);
        },
    );
    let everything = NetworkSettings { reach: Reach::Nothing, ..listed(&["*.example", "1.0.0.0/8"], &[]) };
    with_sandbox(everything, &[at("8.8.8.8")], async |sandbox| {
        for name in ["a.example", "host.internal", "localhost"] {
            assert_eq!(sandbox.ask(name, Rtype::A).await.code, Rcode::NXDOMAIN, "{name}");
        }
        assert!(asked.try_recv().is_err());
    });
    let public = NetworkSettings { reach: Reach::Public, ..listed(&[], &[]) };
    with_sandbox(public, &[at("8.8.8.8")], async |sandbox| {
        // Names of hosts below the floor.
        for name in ["1.0.0.10.in-addr.arpa", "254.169.254.169.in-addr.arpa", "1.0.0.127.in-addr.arpa"] {
            assert_eq!(sandbox.ask(name, Rtype::PTR).await.code, Rcode::NXDOMAIN, "{name}");
        }
        assert!(asked.try_recv().is_err());
        sandbox.ask("1.1.1.1.in-addr.arpa", Rtype::PTR).await;
        assert!(asked.try_recv().is_ok());
    });
}

#[test]
fn addresses_below_the_floor_are_not_passed_on() {
    let Some(internet) = Internet::new() else { return };
    let _nsd = Nsd::start(&internet);
    with_sandbox(NetworkSettings { reach: Reach::Public, ..listed(&[], &[]) }, &[at(nsd::AT)], async |sandbox| {
        for (name, rtype) in
            [("private.example", Rtype::A), ("private.example", Rtype::AAAA), ("rebind.example", Rtype::A)]
        {
            let answer = sandbox.ask(name, rtype).await;
            // Not even where the name leads.
            assert_eq!((answer.code, answer.records.len()), (Rcode::NOERROR, 0), "{name}");
            assert!(answer.reason.is_some(), "{name}");
        }
        assert_eq!(sandbox.ask("mixed.example", Rtype::A).await.addresses(), ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        // A disguise of a public address stays as it is, and its plain form is pinned.
        let answer = sandbox.ask("disguised.example", Rtype::AAAA).await;
        assert_eq!(answer.addresses(), ["64:ff9b::101:101".parse::<IpAddr>().unwrap()]);
        assert_eq!(sandbox.pinned("1.1.1.1"), ["mixed.example", "disguised.example"]);
        for below in ["10.0.0.1", "169.254.169.254", "192.168.0.1", "127.0.0.1", "::1"] {
            assert!(sandbox.pinned(below).is_empty(), "{below}");
        }
        let records = sandbox.records();
        for address in ["10.0.0.1", "169.254.169.254", "::1", "192.168.0.1", "64:ff9b::a9fe:a9fe"] {
            assert!(records.iter().any(|record| reason(record).contains(address)), "{address} {records:?}");
        }
    });
}

#[test]
fn names_of_the_settings_are_answered_here() {
    let Some(internet) = Internet::new() else { return };
    let asked = evil(&internet, "8.8.8.8", |query| vec![answer_to(query, 1)]);
    let host = |name: &str, address: &str| HostName { name: name.to_owned(), address: address.parse().unwrap() };
    let hosts = vec![host("db.example", "10.0.0.5"), host("www.example", "1.1.1.9")];
    let settings = NetworkSettings { hosts, ..listed(&["www.example"], &[]) };
    with_sandbox(settings, &[at("8.8.8.8")], async |sandbox| {
        for (name, address) in [("DB.example", "10.0.0.5"), ("www.example", "1.1.1.9"), ("host.internal", "198.18.0.1")]
        {
            let answer = sandbox.ask(name, Rtype::A).await;
            assert_eq!(answer.addresses(), [address.parse::<IpAddr>().unwrap()], "{name}");
            assert_eq!(answer.records[0].1, 60);
        }
        assert_eq!(sandbox.ask("host.internal", Rtype::AAAA).await.addresses().len(), 1);
        assert_eq!(sandbox.pinned("1.1.1.9"), ["www.example"]);
        assert!(asked.try_recv().is_err());
    });
}

#[test]
fn resolvers_of_the_tenant_are_asked_in_place_of_the_operators_and_are_held_to_the_floor() {
    let Some(internet) = Internet::new() else { return };
    let operators = evil(&internet, "8.8.8.8", |query| vec![answer_to(query, 1)]);
    let tenants = evil(&internet, "9.9.9.9", |query| vec![answer_to(query, 2)]);
    let private = evil(&internet, "10.9.9.9", |query| vec![answer_to(query, 3)]);
    let with = |dns: &[&str]| NetworkSettings {
        dns: dns.iter().map(|address| address.parse().unwrap()).collect(),
        ..listed(&["*.example"], &[])
    };
    with_sandbox(with(&["9.9.9.9"]), &[at("8.8.8.8")], async |sandbox| {
        assert_eq!(sandbox.ask("a.example", Rtype::A).await.addresses(), ["1.1.1.2".parse::<IpAddr>().unwrap()]);
    });
    with_sandbox(with(&["10.9.9.9"]), &[at("8.8.8.8")], async |sandbox| {
        assert_eq!(sandbox.ask("a.example", Rtype::A).await.code, Rcode::SERVFAIL);
    });
    assert_eq!((operators.try_iter().count(), tenants.try_iter().count(), private.try_iter().count()), (0, 1, 0));
    // The operator's may be anywhere.
    with_sandbox(with(&[]), &[at("10.9.9.9")], async |sandbox| {
        assert_eq!(sandbox.ask("a.example", Rtype::A).await.addresses(), ["1.1.1.3".parse::<IpAddr>().unwrap()]);
    });
}
