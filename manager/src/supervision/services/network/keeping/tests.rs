use super::{super::packets, super::packets::Packets, super::process::Process, *};
use crate::{
    Manager,
    manager::tests::manager_with,
    network::{
        operator::{NetworkOperator, Permitted},
        secrets::Kept,
        spec::NetworkSpec,
    },
};
use sandboxvm_protocol::egress::{
    Decided, DialerRequest, EgressLimits, FlowEnd, FlowRecord, NetworkSettings, ProxyLogin, Reach, Transport,
};
use std::path::Path;

/// A network whose processes are idle: the test speaks for the egress process.
struct Rig {
    _home: tempfile::TempDir,
    keeping: Keeping,
    egress: Packets,
}

/// Starts two processes that do nothing, and returns them with our end of the wire of the first.
fn idle_pair() -> (Pair, Packets) {
    let idle = || Process::spawn("egress process", Path::new("/bin/sleep"), Some(c"60"), None).unwrap();
    let (ours, theirs) = packets::pair().unwrap();
    let mut egress = idle();
    egress.packets = Packets::new(theirs).unwrap();
    (Pair::of(egress, idle(), Fixed::default()), Packets::new(ours).unwrap())
}

/// Returns a pair and our end of the wire of its dialer.
fn pair_with_dialer() -> (Pair, Packets) {
    let idle = || Process::spawn("dialer", Path::new("/bin/sleep"), Some(c"60"), None).unwrap();
    let (ours, theirs) = packets::pair().unwrap();
    let mut dialer = idle();
    dialer.packets = Packets::new(theirs).unwrap();
    (Pair::of(idle(), dialer, Fixed::default()), Packets::new(ours).unwrap())
}

async fn rig(operator: NetworkOperator, change: impl FnOnce(Manager) -> Manager) -> Rig {
    let (home, manager) = manager_with(&["abcdefgh"]);
    let sandbox = Arc::new(change(manager).find("abcdefgh").unwrap());
    let directory = SandboxDirectory::open(sandbox.path()).unwrap();
    let spec = NetworkSpec { reach: Reach::Listed, ..NetworkSpec::default() };
    NetworkRecord::of(&operator, &spec).unwrap().write(&directory).unwrap();
    let log = Log::open(&directory).unwrap();
    // There is no machine, so it does not start.
    let (mut keeping, began) = Keeping::start(sandbox, directory, "/nonexistent".into(), log).await;
    assert!(began.is_err());
    let (pair, egress) = idle_pair();
    (keeping.pair, keeping.problem, keeping.retry_at) = (Some(pair), None, None);
    Rig { _home: home, keeping, egress }
}

impl Rig {
    async fn plain() -> Self {
        rig(NetworkOperator::default(), |manager| manager).await
    }

    /// Returns what the supervisor's log says.
    fn log(&self) -> String {
        let log = self.keeping.directory.read(crate::supervision::LOG, 1 << 20).unwrap();
        String::from_utf8(log).unwrap()
    }
}

/// Answers the next request.
async fn answer(egress: &mut Packets, events: Vec<EgressEvent>) -> EgressRequest {
    let request = egress.next().await.unwrap();
    for event in events {
        egress.send(&event, &[]).await.unwrap();
    }
    request
}

fn pin() -> SavedPin {
    SavedPin { name: "a.example".into(), address: [1, 1, 1, 1].into(), seconds: 60 }
}

#[tokio::test]
async fn pins_of_a_process_that_broke_the_protocol_are_not_given_on() {
    let Rig { _home, mut keeping, mut egress } = Rig::plain().await;
    let answered = answer(&mut egress, vec![EgressEvent::Pins(vec![pin()])]);
    let (pins, request) = tokio::join!(keeping.pins(), answered);
    assert_eq!((pins, request), (vec![pin()], EgressRequest::Pins));
    let answered = answer(&mut egress, vec![EgressEvent::Ready, EgressEvent::Pins(vec![pin()])]);
    let (pins, _) = tokio::join!(keeping.pins(), answered);
    assert!(pins.is_empty() && keeping.pair.is_none());
    let problem = keeping.problem.unwrap();
    assert!(problem.contains("unexpected answer without a request"), "{problem}");
}

#[tokio::test]
async fn live_change_is_held_to_what_the_operator_permits_now() {
    let permits =
        |reach| Permitted { reach, allow: vec![], resolvers: false, proxies: false, limits: EgressLimits::default() };
    let operator = |reach| NetworkOperator { permits: Some(permits(reach)), ..NetworkOperator::default() };
    let lowered = |manager: Manager| manager.with_network(operator(Reach::Nothing));
    let mut rig = rig(operator(Reach::Public), lowered).await;
    // The real dialer would answer here.
    let record = rig.keeping.settings().unwrap();
    assert_eq!(record.egress_settings(&rig.keeping.directory).unwrap().reach, NetworkSettings::default().reach);
    assert!(rig.log().contains("the operator does not permit all of the network settings any more"));
}

#[tokio::test]
async fn nothing_passes_when_the_values_of_secrets_cannot_be_read() {
    let Rig { _home, mut keeping, mut egress } = Rig::plain().await;
    keeping.directory.replace("network.secrets", b"{").unwrap();
    let (reply, reloaded) = oneshot::channel();
    keeping.answer(Ask::Reload(reply)).await;
    let problem = reloaded.await.unwrap().unwrap_err().to_string();
    assert!(problem.contains("network.secrets"), "{problem}");
    assert!(keeping.pair.is_none() && keeping.problem == Some(problem));
    assert!(matches!(egress.next::<EgressRequest>().await, Err(WireError::Closed)), "its process has ended");
}

fn with_proxy(rig: &Rig, proxy: &str) -> NetworkRecord {
    let spec = NetworkSpec { reach: Reach::Listed, proxy: Some(proxy.parse().unwrap()), ..NetworkSpec::default() };
    let mut record = NetworkRecord::of(&NetworkOperator::default(), &spec).unwrap();
    record.keep_values(&rig.keeping.directory).unwrap();
    record.write(&rig.keeping.directory).unwrap();
    record
}

#[tokio::test]
async fn dialer_gets_the_proxy_with_its_password_and_its_address() {
    let rig = Rig::plain().await;
    let record = with_proxy(&rig, "socks5://me:hush@localhost:1080");
    let proxy =
        record.upstream(&Kept::read(&rig.keeping.directory).unwrap()).unwrap().unwrap().resolved().await.unwrap();
    let (mut pair, mut dialer) = pair_with_dialer();
    let settings = NetworkSettings::default();
    let (frames, _) = packets::pair().unwrap();
    let begun = tokio::spawn(async move { pair.begin(&record, Some(proxy), settings, Vec::new(), &frames).await });
    let DialerRequest::Begin(setup) = dialer.next().await.unwrap() else { panic!() };
    let proxy = setup.proxy.unwrap();
    assert!(proxy.address.ip().is_loopback() && proxy.address.port() == 1080 && proxy.is_operators);
    assert_eq!(proxy.login, Some(ProxyLogin { user: "me".into(), password: "hush".into() }));
    begun.abort();
}

#[tokio::test]
async fn another_proxy_or_password_gets_other_processes() {
    for (before, after) in [
        (None, "socks5://192.0.2.1:1080"),
        (Some("socks5://192.0.2.1:1080"), "http://192.0.2.1:1080"),
        (Some("socks5://me:hush@192.0.2.1:1080"), "socks5://me:other@192.0.2.1:1080"),
    ] {
        let Rig { _home, mut keeping, mut egress } = {
            let mut rig = Rig::plain().await;
            if let Some(before) = before {
                let record = with_proxy(&rig, before);
                rig.keeping.pair.as_mut().unwrap().fixed = Fixed::of(&record, &rig.keeping.directory).unwrap();
            }
            with_proxy(&rig, after);
            rig
        };
        let (reply, reloaded) = oneshot::channel();
        let answered = answer(&mut egress, vec![EgressEvent::Pins(vec![])]);
        let (_, request) = tokio::join!(keeping.answer(Ask::Reload(reply)), answered);
        assert_eq!(request, EgressRequest::Pins, "the processes are replaced");
        assert!(matches!(egress.next::<EgressRequest>().await, Err(WireError::Closed)), "{after}");
        // There is no machine that others could be for.
        assert!(reloaded.await.unwrap().is_err() && keeping.pair.is_none());
    }
}

#[tokio::test]
async fn nothing_passes_while_the_proxy_cannot_be_resolved_or_its_password_cannot_be_read() {
    // SAFETY: this flag does not unshare the file table. Threads that are started from here have this network too.
    if unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.is_err() {
        // Only root may. Without it, the name would be asked for outside.
        return;
    }
    for (proxy, problem) in [
        ("socks5://no-such-host.invalid:1080", "cannot resolve its name"),
        ("socks5://me:hush@192.0.2.1:1080", "cannot read its password"),
    ] {
        let mut rig = Rig::plain().await;
        with_proxy(&rig, proxy);
        rig.keeping.directory.replace("network.secrets", b"{}").unwrap();
        rig.keeping.pair = None;
        let error = rig.keeping.begin().await.unwrap_err().to_string();
        assert!(error.contains(problem) && !error.contains("hush") && rig.keeping.pair.is_none(), "{error}");
    }
}

#[tokio::test]
async fn machine_that_is_replaced_or_reset_gets_other_processes() {
    let Rig { _home, mut keeping, mut egress } = Rig::plain().await;
    let (reply, pins) = oneshot::channel();
    let answered = answer(&mut egress, vec![EgressEvent::Pins(vec![pin()])]);
    tokio::join!(keeping.answer(Ask::Pins { is_replaced: true, reply }), answered);
    assert_eq!(pins.await.unwrap(), [pin()]);
    assert!(keeping.pair.is_none(), "nothing passes while the machine is being replaced");
    assert!(matches!(egress.next::<EgressRequest>().await, Err(WireError::Closed)), "its process has ended");
}

fn flow(port: u16) -> EgressEvent {
    EgressEvent::Flow(FlowRecord {
        transport: Transport::Tcp,
        name: None,
        address: [192, 0, 2, 1].into(),
        port,
        decided: Decided::Allowed(None),
        bytes_out: 0,
        bytes_in: 0,
        millis: 0,
        end: FlowEnd::Closed,
        count: 1,
    })
}

#[tokio::test]
async fn one_last_line_says_that_lines_of_the_guest_are_left_out() {
    let Rig { _home, mut keeping, egress: _egress } =
        rig(NetworkOperator::default(), |manager| manager.with_max_audit_log(4096)).await;
    for port in 1..=100 {
        keeping.record(flow(port)).unwrap();
    }
    let trail = keeping.sandbox.trail();
    let logged = trail.verify().unwrap().lines;
    let text = std::fs::read_to_string(trail.path()).unwrap();
    assert_eq!(text.matches("network_unlogged").count(), 1);
    assert!(text.lines().last().unwrap().contains("\"event\":\"network_unlogged\""), "{text}");
    assert_eq!(keeping.unlogged, 100 + 1 - logged);
    keeping.pair = None;
    let (reply, report) = oneshot::channel();
    keeping.answer(Ask::Report(reply)).await;
    assert_eq!(report.await.unwrap().unlogged, 101 - logged);
    // Its owner can still act, and a log that was archived gets lines again.
    trail.append(Event::Paused).unwrap();
    std::fs::rename(trail.path(), trail.path().with_extension("old")).unwrap();
    keeping.record(flow(1)).unwrap();
    assert!(!keeping.is_log_closed);
}

#[tokio::test]
async fn end_is_not_delayed_by_a_process_that_reports_without_end() {
    let Rig { _home, keeping, egress } = Rig::plain().await;
    // Our end of the wire stays open, as that of a process which cannot be killed.
    let flood = tokio::spawn(async move {
        loop {
            if egress.send(&flow(443), &[]).await.is_err() {
                return;
            }
        }
    });
    timeout(Duration::from_secs(10), keeping.end()).await.expect("the end is bounded");
    flood.abort();
}

#[tokio::test]
async fn what_a_process_reported_before_it_ended_is_logged() {
    let Rig { _home, keeping, egress } = Rig::plain().await;
    egress.send(&flow(443), &[]).await.unwrap();
    drop(egress);
    let sandbox = Arc::clone(&keeping.sandbox);
    keeping.end().await;
    assert_eq!(sandbox.trail().verify().unwrap().lines, 1);
}

#[tokio::test]
async fn texts_of_a_process_are_one_short_line() {
    let mut rig = Rig::plain().await;
    let hostile = format!("\u{1b}[2J\nsandboxvm: forged\n{}", "x\n".repeat(50_000));
    rig.keeping.record(EgressEvent::Configured(Err(hostile))).unwrap();
    let problem = rig.keeping.problem.as_deref().unwrap();
    assert!(problem.len() < MAX_TEXT + 40 && !problem.contains(char::is_control), "{problem}");
    let log = rig.log();
    assert!(log.len() < 2 * 1024 && !log.lines().any(|line| line.starts_with("sandboxvm")), "{log}");
}
