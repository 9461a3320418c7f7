//! Name servers that answer too much, something else, nothing, or are asked too often.

use crate::{
    internet::{
        Internet,
        nsd::{self, Nsd},
    },
    sandbox::{Answer, answer_to, at, evil, listed, query, with_sandbox},
};
use domain::base::iana::{Rcode, Rtype};
use sandboxvm_egress_policy::pins::MAX_NAMES;
use sandboxvm_protocol::egress::{Decided, ResolverTransport};
use std::{
    net::{IpAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

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
