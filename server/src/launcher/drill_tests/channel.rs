//! What a front sends on its channel, and how much of the launcher it can hold with it.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_bytes_end_their_channel_and_nothing_else() {
    let drill = drill();
    let (honest, _served) = drill.front();
    let before = (drill.files(), drill.victims_record());
    for seed in 0..300 {
        let line = drill.line();
        let mut bytes = noise(seed, usize::try_from(seed % 64).unwrap() * 17);
        // Some of them with a header that is valid, before a head that is not.
        if seed % 3 == 0 {
            let head = noise(seed + 1, 200);
            let mut header = [200_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
            header.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            header.extend(head);
            bytes.splice(0..0, header);
        }
        line.socket.writable().await.unwrap();
        let _ = line.socket.try_write(&bytes);
        drop(line.socket);
        let ended = timeout(SOON, line.served).await.expect("a channel ends").expect("it does not panic");
        assert!(ended.contains("broke the protocol") || ended.contains("closed"), "{ended}");
        let found: Option<Value> =
            honest.ask(Request::Authenticate { secret: drill.victim.secret.clone() }).await.unwrap();
        assert!(found.is_some());
    }
    assert!(before == (drill.files(), drill.victims_record()), "nothing was changed");
}

#[test]
fn an_answer_that_is_too_long_for_a_front_is_a_failure_of_its_request() {
    let answer = |head, tail| Answer { head: vec![b'x'; head], tail: vec![0; tail], descriptors: Vec::new() };
    answer(64 << 20, 0).frame(1).unwrap();
    for (head, tail) in [((64 << 20) + 1, 0), (0, (64 << 20) + 1)] {
        let failure = answer(head, tail).frame(1).unwrap_err();
        assert!(failure.message.contains("pages"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_that_wait_for_a_turn_end_with_their_front() {
    let drill = drill();
    // Another front has all turns.
    let long = &drill.launcher.places.long_operations;
    let turns = long.acquire_many(12).await.unwrap();
    let line = drill.line();
    let secret = drill.attacker.secret.clone();
    let operation = Operation::Templates;
    let request = Request::Operate { secret, operation };
    let head = serde_json::to_vec(&Envelope { trace: None, request }).unwrap();
    wire::write(&line.socket, &Frame::new(1, Kind::Request, head)).await.unwrap();
    // Another channel has the same turns.
    let (honest, _served) = drill.front();
    let secret = drill.victim.secret.clone();
    let waiting = honest.ask::<Value>(Request::Operate { secret, operation: Operation::Templates });
    let mut waiting = std::pin::pin!(waiting);
    timeout(Duration::from_millis(200), waiting.as_mut()).await.unwrap_err();
    drop(line.socket);
    timeout(SOON, line.served).await.unwrap().unwrap();
    drop(turns);
    timeout(SOON, waiting).await.expect("its turn comes").unwrap();
    let turns = timeout(SOON, long.acquire_many(12)).await.expect("no turn is kept").unwrap();
    drop(turns);
}

fn resident_mib() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / (1 << 20)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_front_that_reads_no_answers_takes_bounded_memory_and_delays_no_other() {
    let drill = drill();
    let (honest, _served) = drill.front();
    let line = drill.line();
    let before = resident_mib();
    let secret = drill.attacker.secret.clone();
    let large = Operation::Alias { alias: "x".repeat(1 << 20) };
    let requests = [
        Request::Authenticate { secret: secret.clone() },
        Request::Operate { secret: secret.clone(), operation: large },
        Request::Known { ids: vec![SandboxId::try_from(VICTIM.to_owned()).unwrap(); 20_000] },
        Request::Operate { secret, operation: Operation::Templates },
    ];
    let heads: Vec<Vec<u8>> =
        requests.into_iter().map(|request| serde_json::to_vec(&Envelope { trace: None, request }).unwrap()).collect();
    let socket = Arc::new(line.socket);
    let flood = AbortOnDropHandle::new(tokio::spawn({
        let socket = Arc::clone(&socket);
        async move {
            let mut sent = 0_u64;
            loop {
                let head = heads[usize::try_from(sent).unwrap() % heads.len()].clone();
                sent += 1;
                if wire::write(&socket, &Frame::new(sent, Kind::Request, head)).await.is_err() {
                    return;
                }
            }
        }
    }));
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        let found: Option<Value> =
            timeout(SOON, honest.ask(Request::Authenticate { secret: drill.victim.secret.clone() }))
                .await
                .expect("another front is answered")
                .unwrap();
        assert!(found.is_some());
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < 512, "{grown} MiB");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert!(!flood.is_finished(), "it waits: its answers are not read");
}
