//! The resolver with a real dialer, and real name servers in a network namespace that is the internet.

#![allow(clippy::unwrap_used, reason = "clippy allows it in test functions only, not in what they call")]

mod internet;

use domain::base::{
    Message, MessageBuilder, Question, Ttl,
    iana::{Class, Rcode, Rtype},
    name::Name,
    opt::UnknownOptData,
};
use internet::{
    Internet,
    dialer::Dialer,
    nsd::{self, Nsd},
};
use sandboxvm_egress::{dialing::Dialing, resolver::Resolver, session::Session, tls::trust::Trust};
use sandboxvm_egress_policy::pins::MAX_NAMES;
use sandboxvm_protocol::egress::{
    Decided, DialerSettings, EgressEvent, HostName, NameRecord, NetworkSettings, Reach, ResolverTransport,
};
use std::{
    cell::RefCell,
    future::Future,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    rc::Rc,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// A sandbox, as far as its resolver is concerned.
struct Sandbox {
    resolver: Rc<Resolver>,
    session: Rc<RefCell<Session>>,
    dialer: Dialer,
}

fn listed(allow: &[&str], deny: &[&str]) -> NetworkSettings {
    let texts = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
    NetworkSettings { reach: Reach::Listed, allow: texts(allow), deny: texts(deny), ..NetworkSettings::default() }
}

fn with_sandbox<F: Future<Output = ()>>(
    settings: NetworkSettings,
    resolvers: &[SocketAddr],
    test: impl FnOnce(Sandbox) -> F,
) {
    let tenant_resolvers = settings.dns.clone();
    let (dialer, requests) =
        Dialer::start(&[], resolvers, DialerSettings { tenant_resolvers, ..DialerSettings::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut session = Session::new(u8::try_from(resolvers.len()).unwrap(), Trust::default());
        session.configure(settings).unwrap();
        let session = Rc::new(RefCell::new(session));
        let dialing = Dialing::new(requests).unwrap();
        let resolver = Rc::new(Resolver::new(dialing, Rc::clone(&session)));
        test(Sandbox { resolver, session, dialer }).await;
    });
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 53)
}

fn query(name: &str, rtype: Rtype, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(77);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push(Question::new_in(name.parse::<Name<Vec<u8>>>().unwrap(), rtype)).unwrap();
    let mut builder = builder.additional();
    if let Some(size) = edns {
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
    }
    builder.finish()
}

/// An answer, as the guest reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    code: Rcode,
    is_truncated: bool,
    /// Owner, TTL, type and data of each record.
    records: Vec<(String, u32, Rtype, Vec<u8>)>,
    reason: Option<String>,
}

impl Answer {
    fn read(bytes: &[u8], name: &str) -> Self {
        let message = Message::from_octets(bytes.to_vec()).unwrap();
        assert!(message.header().qr() && message.header().ra() && message.header().id() == 77);
        // In the case that the guest chose.
        assert_eq!(message.sole_question().unwrap().qname().to_string(), name);
        let records = message.answer().unwrap().map(|record| {
            let record = record.unwrap();
            assert_eq!(record.class(), Class::IN);
            let parsed =
                record.to_any_record::<domain::rdata::AllRecordData<_, domain::base::ParsedName<_>>>().unwrap();
            let mut data = Vec::new();
            domain::base::rdata::ComposeRecordData::compose_rdata(parsed.data(), &mut data).unwrap();
            (record.owner().to_string(), record.ttl().as_secs(), record.rtype(), data)
        });
        let records = records.collect();
        let reason = message.opt().and_then(|opt| {
            let option = opt.opt().iter::<UnknownOptData<_>>().next()?.unwrap();
            Some(String::from_utf8(option.as_slice()[2..].to_vec()).unwrap())
        });
        Self { code: message.header().rcode(), is_truncated: message.header().tc(), records, reason }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let address = |(_, _, rtype, data): &(_, _, Rtype, Vec<u8>)| match *rtype {
            Rtype::A => Some(<[u8; 4]>::try_from(&data[..]).unwrap().into()),
            Rtype::AAAA => Some(<[u8; 16]>::try_from(&data[..]).unwrap().into()),
            _ => None,
        };
        self.records.iter().filter_map(address).collect()
    }
}

impl Sandbox {
    async fn ask(&self, name: &str, rtype: Rtype) -> Answer {
        let bytes = self.resolver.answer(&query(name, rtype, Some(1232)), ResolverTransport::Udp).await.unwrap();
        assert!(bytes.len() <= 1232);
        Answer::read(&bytes, name)
    }

    fn pinned(&self, address: &str) -> Vec<String> {
        let names = self.session.borrow().pins.names_of(address.parse().unwrap(), Instant::now());
        names.iter().map(ToString::to_string).collect()
    }

    fn records(&self) -> Vec<NameRecord> {
        let mut session = self.session.borrow_mut();
        session.records.collect();
        let name = |event| match event {
            EgressEvent::Name(record) => record,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| session.records.take()).map(name).collect()
    }
}

fn reason(record: &NameRecord) -> &str {
    match &record.decided {
        Decided::Refused { reason, .. } => reason,
        Decided::Allowed(_) => "",
    }
}

/// A name server that answers as `behave` says, and reports each question: its name as it was written.
fn evil(
    internet: &Internet,
    address: &'static str,
    mut behave: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> mpsc::Receiver<String> {
    let (sender, asked) = mpsc::channel();
    let socket = internet.run(move || UdpSocket::bind(at(address)).unwrap());
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let question = Message::from_slice(&bytes[..length]).unwrap().sole_question().unwrap();
            sender.send(question.qname().to_string()).unwrap();
            for answer in behave(&bytes[..length]) {
                socket.send_to(&answer, from).unwrap();
            }
        }
    });
    asked
}

/// An answer of 1.1.1.`last` to a query.
fn answer_to(query: &[u8], last: u8) -> Vec<u8> {
    let question = Message::from_slice(query).unwrap();
    let mut builder = MessageBuilder::new_vec().start_answer(question, Rcode::NOERROR).unwrap();
    let name = *question.sole_question().unwrap().qname();
    builder.push((name, Ttl::from_secs(60), domain::rdata::A::from_octets(1, 1, 1, last))).unwrap();
    builder.finish()
}

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
fn answers_fit_what_the_guest_takes() {
    let Some(internet) = Internet::new() else { return };
    let _nsd = Nsd::start(&internet);
    with_sandbox(listed(&["*.example"], &[]), &[at(nsd::AT)], async |sandbox| {
        // The name server's own answer over UDP is truncated too.
        for (edns, over, count) in [
            (None, ResolverTransport::Udp, 0),
            (Some(1232), ResolverTransport::Udp, 0),
            (Some(4096), ResolverTransport::Udp, 120),
            (None, ResolverTransport::Tcp, 120),
        ] {
            let bytes = sandbox.resolver.answer(&query("many.example", Rtype::A, edns), over).await.unwrap();
            let answer = Answer::read(&bytes, "many.example");
            assert_eq!((answer.addresses().len(), answer.is_truncated), (count, count == 0), "{edns:?} {over:?}");
            assert!(over == ResolverTransport::Tcp || bytes.len() <= usize::from(edns.unwrap_or(512)));
        }
    });
}

#[test]
fn answers_to_other_questions_are_ignored() {
    let Some(internet) = Internet::new() else { return };
    let asked = evil(&internet, "8.8.8.8", |query| {
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut answer = answer_to(query, 66);
            change(&mut answer);
            answer
        };
        vec![
            changed(&|answer| answer[0] ^= 1),
            changed(&|answer| answer[13] ^= 1),
            changed(&|answer| answer[2] &= 0x7f),
            changed(&|answer| answer.truncate(20)),
            vec![0; 3],
            changed(&|answer| {
                // The type of the question.
                let end = answer[12..].iter().position(|byte| *byte == 0).unwrap();
                answer[12 + end + 2] = 28;
            }),
            answer_to(query, 1),
        ]
    });
    with_sandbox(listed(&["*.example"], &[]), &[at("8.8.8.8")], async |sandbox| {
        assert_eq!(sandbox.ask("www.example", Rtype::A).await.addresses(), ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        // A second question is asked in another case.
        let first = asked.recv().unwrap();
        let other = async |number: usize| {
            sandbox.ask(&format!("w{number}.example"), Rtype::A).await;
            asked.recv().unwrap()
        };
        let mut cases = vec![first];
        for number in 0..8 {
            cases.push(other(number).await);
        }
        assert!(cases.iter().any(|name| *name != name.to_ascii_lowercase()), "{cases:?}");
    });
}

#[test]
fn an_answer_in_another_case_is_asked_for_again_over_tcp() {
    let Some(internet) = Internet::new() else { return };
    let lower = |query: &[u8], last| {
        let mut answer = answer_to(query, last);
        answer[12..].make_ascii_lowercase();
        answer
    };
    let _asked = evil(&internet, "8.8.8.8", move |query| vec![lower(query, 66)]);
    let listener = internet.run(|| TcpListener::bind(at("8.8.8.8")).unwrap());
    thread::spawn(move || {
        use std::io::{Read, Write};
        for mut stream in listener.incoming().flatten() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut query).unwrap();
            let answer = lower(&query, 1);
            stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    with_sandbox(listed(&["*.example"], &[]), &[at("8.8.8.8")], async |sandbox| {
        let name = "a-name-with-many-letters.example";
        assert_eq!(sandbox.ask(name, Rtype::A).await.addresses(), ["1.1.1.1".parse::<IpAddr>().unwrap()]);
    });
}

#[test]
fn malformed_answers_are_failures() {
    let Some(internet) = Internet::new() else { return };
    let mut count = 0_u8;
    let _asked = evil(&internet, "8.8.8.8", move |query| {
        count += 1;
        let mut answer = answer_to(query, 1);
        let at = u8::try_from(query.len() - 11).unwrap();
        match count % 4 {
            // More records than there are.
            0 => answer[7] = 200,
            // A name that points to itself, and one that points behind itself.
            1 => answer[usize::from(at)..][..2].copy_from_slice(&[0xc0, at]),
            2 => answer[usize::from(at)..][..2].copy_from_slice(&[0xc0, at + 4]),
            // An address of five bytes.
            _ => {
                let length = answer.len();
                answer[length - 5] = 5;
                answer.push(1);
            }
        }
        vec![answer]
    });
    with_sandbox(listed(&["*.example"], &[]), &[at("8.8.8.8")], async |sandbox| {
        for number in 0..8 {
            let answer = sandbox.ask(&format!("n{number}.example"), Rtype::A).await;
            assert!(answer.addresses().is_empty(), "{number} {answer:?}");
        }
    });
}

#[test]
fn the_next_resolver_is_asked_when_one_does_not_answer() {
    let Some(internet) = Internet::new() else { return };
    let silent = evil(&internet, "8.8.8.8", |_| Vec::new());
    let failing = evil(&internet, "203.1.2.3", |query| {
        let mut answer = answer_to(query, 66);
        answer[3] |= 2;
        vec![answer]
    });
    let good = evil(&internet, "9.9.9.9", |query| vec![answer_to(query, 1)]);
    let all = [at("8.8.8.8"), at("203.1.2.3"), at("9.9.9.9")];
    with_sandbox(listed(&["*.example"], &[]), &all, async |sandbox| {
        let begun = Instant::now();
        assert_eq!(sandbox.ask("a.example", Rtype::A).await.addresses(), ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        assert!((Duration::from_millis(1900)..Duration::from_secs(3)).contains(&begun.elapsed()));
        assert!(silent.try_recv().is_ok() && failing.try_recv().is_ok() && good.try_recv().is_ok());
    });
    with_sandbox(listed(&["*.example"], &[]), &[at("8.8.8.8")], async |sandbox| {
        let begun = Instant::now();
        // Many ask the same question, and all of them get the answer.
        let answers = (0..20).map(|_| sandbox.ask("a.example", Rtype::A));
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.code, Rcode::SERVFAIL);
        }
        assert!((Duration::from_millis(4900)..Duration::from_secs(6)).contains(&begun.elapsed()));
        assert_eq!(silent.try_iter().count(), 3);
        // For a while it is not asked again.
        assert_eq!(sandbox.ask("a.example", Rtype::A).await.code, Rcode::SERVFAIL);
        assert_eq!(silent.try_iter().count(), 0);
        let record = sandbox.records().pop().unwrap();
        assert_eq!((record.count, record.decided), (21, Decided::Allowed(Some("*.example".to_owned()))));
    });
    for unreachable in [&[][..], &[at("1.1.1.1"), at("7.7.7.7")]] {
        with_sandbox(listed(&["*.example"], &[]), unreachable, async |sandbox| {
            let begun = Instant::now();
            assert_eq!(sandbox.ask("a.example", Rtype::A).await.code, Rcode::SERVFAIL);
            assert!(begun.elapsed() < Duration::from_secs(1));
        });
    }
}

#[test]
fn ten_thousand_questions_do_not_reach_the_name_server_as_often() {
    let Some(internet) = Internet::new() else { return };
    let asked = evil(&internet, "8.8.8.8", |query| vec![answer_to(query, 1)]);
    with_sandbox(listed(&["*.example"], &[]), &[at("8.8.8.8")], async |sandbox| {
        for _ in 0..100 {
            let answers =
                (0..100).map(|number| sandbox.ask(if number % 2 == 0 { "a.example" } else { "b.example" }, Rtype::A));
            for answer in futures_util::future::join_all(answers).await {
                assert_eq!(answer.addresses().len(), 1);
            }
        }
        assert_eq!(asked.try_iter().count(), 2);
        // As many names as there are questions, of which too many at the same time fail.
        let mut failed = 0;
        for round in 0..20 {
            let names: Vec<_> = (0..500).map(|number| format!("n{round}x{number}.example")).collect();
            let answers = names.iter().map(|name| sandbox.ask(name, Rtype::A));
            let answers = futures_util::future::join_all(answers).await;
            failed += answers.iter().filter(|answer| answer.code == Rcode::SERVFAIL).count();
        }
        assert!((1..10_000 - 128).contains(&failed), "{failed}");
        // All of them have one address.
        assert_eq!(sandbox.session.borrow().pins.len(), MAX_NAMES);
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
