//! A sandbox as far as its resolver is concerned, what its guest asks, and a name server that does what a test says.

use crate::internet::{Internet, dialer::Dialer};
use domain::base::{
    Message, MessageBuilder, Question, Ttl,
    iana::{Class, Rcode, Rtype},
    name::Name,
    opt::UnknownOptData,
};
use sandboxvm_egress::{dialing::Dialing, resolver::Resolver, session::Session, tls::trust::Trust};
use sandboxvm_protocol::egress::{
    Decided, DialerSettings, EgressEvent, NameRecord, NetworkSettings, Reach, ResolverTransport,
};
use std::{
    cell::RefCell,
    future::Future,
    net::{IpAddr, SocketAddr, UdpSocket},
    rc::Rc,
    sync::mpsc,
    thread,
    time::Instant,
};

/// A sandbox, as far as its resolver is concerned.
pub(crate) struct Sandbox {
    pub(crate) resolver: Rc<Resolver>,
    pub(crate) session: Rc<RefCell<Session>>,
    pub(crate) dialer: Dialer,
}

pub(crate) fn listed(allow: &[&str], deny: &[&str]) -> NetworkSettings {
    let texts = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
    NetworkSettings { reach: Reach::Listed, allow: texts(allow), deny: texts(deny), ..NetworkSettings::default() }
}

pub(crate) fn with_sandbox<F: Future<Output = ()>>(
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

pub(crate) fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 53)
}

pub(crate) fn query(name: &str, rtype: Rtype, edns: Option<u16>) -> Vec<u8> {
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
pub(crate) struct Answer {
    pub(crate) code: Rcode,
    pub(crate) is_truncated: bool,
    /// Owner, TTL, type and data of each record.
    pub(crate) records: Vec<(String, u32, Rtype, Vec<u8>)>,
    pub(crate) reason: Option<String>,
}

impl Answer {
    pub(crate) fn read(bytes: &[u8], name: &str) -> Self {
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

    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let address = |(_, _, rtype, data): &(_, _, Rtype, Vec<u8>)| match *rtype {
            Rtype::A => Some(<[u8; 4]>::try_from(&data[..]).unwrap().into()),
            Rtype::AAAA => Some(<[u8; 16]>::try_from(&data[..]).unwrap().into()),
            _ => None,
        };
        self.records.iter().filter_map(address).collect()
    }
}

impl Sandbox {
    pub(crate) async fn ask(&self, name: &str, rtype: Rtype) -> Answer {
        let bytes = self.resolver.answer(&query(name, rtype, Some(1232)), ResolverTransport::Udp).await.unwrap();
        assert!(bytes.len() <= 1232);
        Answer::read(&bytes, name)
    }

    pub(crate) fn pinned(&self, address: &str) -> Vec<String> {
        let names = self.session.borrow().pins.names_of(address.parse().unwrap(), Instant::now());
        names.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn records(&self) -> Vec<NameRecord> {
        let mut session = self.session.borrow_mut();
        session.records.collect();
        let name = |event| match event {
            EgressEvent::Name(record) => record,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| session.records.take()).map(name).collect()
    }
}

pub(crate) fn reason(record: &NameRecord) -> &str {
    match &record.decided {
        Decided::Refused { reason, .. } => reason,
        Decided::Allowed(_) => "",
    }
}

/// A name server that answers as `behave` says, and reports each question: its name as it was written.
pub(crate) fn evil(
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
pub(crate) fn answer_to(query: &[u8], last: u8) -> Vec<u8> {
    let question = Message::from_slice(query).unwrap();
    let mut builder = MessageBuilder::new_vec().start_answer(question, Rcode::NOERROR).unwrap();
    let name = *question.sole_question().unwrap().qname();
    builder.push((name, Ttl::from_secs(60), domain::rdata::A::from_octets(1, 1, 1, last))).unwrap();
    builder.finish()
}
