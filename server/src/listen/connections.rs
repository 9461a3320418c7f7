//! The open connections of one listener: how many there are in all and of one peer address, and which of them have no
//! request. A listener that is full closes the connection that has been idle longest among those of the address that has
//! most, and for an address that has its share the longest idle one of its own, so that connections without requests never
//! keep a client out. Knows nothing of HTTP.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// The address that a client connects from. An IPv6 client has a whole /64 of them, which counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer(IpAddr);

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                const NETWORK: u128 = !(u64::MAX as u128);
                Self(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)))
            }
            address => Self(address),
        }
    }
}

/// How many connections a listener has, and how long they may have no request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// In all.
    pub(crate) all: usize,
    /// Of one peer address.
    pub(crate) of_one_peer: usize,
    /// From the connection to the end of its first request's headers, TLS included.
    pub(crate) first_request: Duration,
    /// From the end of an answer to the next request.
    pub(crate) idle: Duration,
}

#[derive(Debug)]
pub(crate) struct Connections {
    limits: Limits,
    open: Mutex<Open>,
    freed: Notify,
    ending: CancellationToken,
    tracker: TaskTracker,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: HashMap<u64, (Peer, Arc<Use>)>,
    by_peer: HashMap<Peer, usize>,
}

/// What a connection is used for.
#[derive(Debug)]
struct Use {
    state: Mutex<UseState>,
    changed: Notify,
}

#[derive(Debug)]
struct UseState {
    requests: usize,
    had_request: bool,
    since: Instant,
    is_to_close: bool,
}

/// One open connection; counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    number: u64,
    usage: Arc<Use>,
    connections: Arc<Connections>,
    // The server waits for it when it ends.
    _tracked: TaskTrackerToken,
}

/// A request of a connection, or what it was upgraded to. The connection counts, and is not idle, until this is dropped.
#[derive(Debug)]
pub(crate) struct InUse(Arc<Connection>);

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Full,
    PeerFull,
}

impl Connections {
    pub(crate) fn new(limits: Limits, ending: CancellationToken, tracker: TaskTracker) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default(), freed: Notify::new(), ending, tracker })
    }

    /// Waits until there is room for a connection of this peer. Returns `None` when the peer has as many as it may have.
    pub(crate) async fn enter(self: &Arc<Self>, peer: Peer) -> Option<Arc<Connection>> {
        loop {
            let freed = self.freed.notified();
            match self.try_enter(peer) {
                Ok(connection) => return Some(connection),
                Err(Refused::PeerFull) => return None,
                Err(Refused::Full) => freed.await,
            }
        }
    }

    fn try_enter(self: &Arc<Self>, peer: Peer) -> Result<Arc<Connection>, Refused> {
        let mut open = self.open();
        if open.by_peer.get(&peer).is_some_and(|count| *count >= self.limits.of_one_peer.max(1)) {
            return Err(if open.close_one(Some(peer)) { Refused::Full } else { Refused::PeerFull });
        }
        if open.all.len() >= self.limits.all.max(1) {
            open.close_one(None);
            return Err(Refused::Full);
        }
        let state = UseState { requests: 0, had_request: false, since: Instant::now(), is_to_close: false };
        let usage = Arc::new(Use { state: Mutex::new(state), changed: Notify::new() });
        let number = open.next;
        open.next += 1;
        open.all.insert(number, (peer, Arc::clone(&usage)));
        *open.by_peer.entry(peer).or_default() += 1;
        drop(open);
        let tracked = self.tracker.token();
        Ok(Arc::new(Connection { peer, number, usage, connections: Arc::clone(self), _tracked: tracked }))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Tells one idle connection, of this peer where one is named, to close, unless one is closing already. False when all
    /// have requests.
    fn close_one(&self, only: Option<Peer>) -> bool {
        let mut idle = Vec::new();
        for (peer, usage) in self.all.values().filter(|(peer, _)| only.is_none_or(|only| only == *peer)) {
            let state = usage.state();
            match (state.is_to_close, state.requests) {
                (true, 0) => return true,
                (false, 0) => idle.push((self.by_peer.get(peer).copied().unwrap_or(0), state.since, usage)),
                _ => {}
            }
        }
        let chosen = idle.into_iter().min_by_key(|(of_peer, since, _)| (std::cmp::Reverse(*of_peer), *since));
        let Some((_, _, usage)) = chosen else { return false };
        usage.state().is_to_close = true;
        usage.changed.notify_one();
        true
    }
}

impl Use {
    fn state(&self) -> MutexGuard<'_, UseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Counts a request of it.
    pub(crate) fn begin(self: &Arc<Self>) -> Arc<InUse> {
        let mut state = self.usage.state();
        state.requests += 1;
        state.had_request = true;
        drop(state);
        self.usage.changed.notify_one();
        Arc::new(InUse(Arc::clone(self)))
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.usage.state().requests > 0
    }

    /// Returns when it has been without a request for too long, or its place is needed: then true. For one waiter at a time.
    pub(crate) async fn unused(&self) -> bool {
        let limits = &self.connections.limits;
        loop {
            let changed = self.usage.changed.notified();
            let until = {
                let state = self.usage.state();
                let limit = if state.had_request { limits.idle } else { limits.first_request };
                match state.requests {
                    0 if state.is_to_close => return true,
                    0 => Some(state.since + limit),
                    _ => None,
                }
            };
            match until {
                Some(until) if until <= Instant::now() => return false,
                Some(until) => tokio::select! {
                    () = sleep_until(until) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// Cancelled when the server ends.
    pub(crate) fn ending(&self) -> &CancellationToken {
        &self.connections.ending
    }
}

impl InUse {
    /// Cancelled when the server ends.
    pub(crate) fn ending(&self) -> &CancellationToken {
        self.0.ending()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.0.usage.state();
        state.requests -= 1;
        state.since = Instant::now();
        let is_idle = state.requests == 0;
        drop(state);
        self.0.usage.changed.notify_one();
        if is_idle {
            // Who waits for a place may close this one.
            self.0.connections.freed.notify_one();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        open.all.remove(&self.number);
        if let Some(count) = open.by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.by_peer.remove(&self.peer);
            }
        }
        drop(open);
        self.connections.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    fn table(all: usize, of_one_peer: usize) -> Arc<Connections> {
        let [first_request, idle] = [30, 75].map(Duration::from_secs);
        let limits = Limits { all, of_one_peer, first_request, idle };
        Connections::new(limits, CancellationToken::new(), TaskTracker::new())
    }

    fn peer(last: u8) -> Peer {
        Peer::from(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn an_ipv6_network_is_one_peer() {
        let of = |text: &str| Peer::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8:0:0:ffff::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[tokio::test]
    async fn one_peer_has_its_share() {
        let table = table(10, 2);
        let first = table.enter(peer(1)).await.unwrap();
        let second = table.enter(peer(1)).await.unwrap();
        let (one, _two) = (first.begin(), second.begin());
        assert!(table.enter(peer(1)).await.is_none());
        let _other = table.enter(peer(2)).await.unwrap();
        drop((one, first));
        let third = table.enter(peer(1)).await.unwrap();
        assert_eq!(table.open().by_peer[&peer(1)], 2);
        // An idle one of its own makes room.
        let entering = tokio::spawn({
            let table = Arc::clone(&table);
            async move { table.enter(peer(1)).await.is_some() }
        });
        assert!(third.unused().await);
        drop(third);
        assert!(entering.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_listener_closes_what_is_idle_longest_of_the_peer_that_has_most() {
        let table = table(4, 4);
        let alone = table.enter(peer(1)).await.unwrap();
        let busy = table.enter(peer(2)).await.unwrap();
        let request = busy.begin();
        advance(Duration::from_secs(1)).await;
        let older = table.enter(peer(2)).await.unwrap();
        advance(Duration::from_secs(1)).await;
        let newer = table.enter(peer(2)).await.unwrap();
        let entering = tokio::spawn({
            let table = Arc::clone(&table);
            async move { table.enter(peer(3)).await.is_some() }
        });
        assert!(older.unused().await);
        for other in [&alone, &newer, &busy] {
            assert!(timeout(Duration::from_millis(1), other.unused()).await.is_err());
        }
        drop(older);
        assert!(entering.await.unwrap());
        drop(request);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_is_unused_in_the_end() {
        let table = table(4, 4);
        let connection = table.enter(peer(1)).await.unwrap();
        let begun = Instant::now();
        connection.unused().await;
        assert_eq!(begun.elapsed().as_secs(), 30);
        let request = connection.begin();
        assert!(timeout(Duration::from_secs(3600), connection.unused()).await.is_err());
        drop(request);
        let begun = Instant::now();
        connection.unused().await;
        assert_eq!(begun.elapsed().as_secs(), 75);
    }
}
