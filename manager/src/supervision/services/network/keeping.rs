//! The task that keeps the network of one sandbox: turns events into audit lines, answers the
//! supervisor, and starts other processes in place of those that end. While there are none, the
//! card has no link.

use super::pair::{Fixed, NetworkFailure, Pair};
use crate::{
    audit::Event,
    home::directory::SandboxDirectory,
    hostile_text::one_line,
    network::{
        operator::present,
        pins::{self, KeptPins},
        record::NetworkRecord,
        usage::Traffic,
    },
    sandbox::Sandbox,
    supervision::{log::Log, talk::NetworkReport},
    vmm::wire::WireError,
};
use sandboxvm_protocol::egress::{EgressEvent, EgressRequest, SavedPin, TrafficCounters};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

/// Delay before processes that ended are replaced. A VMM that is being ended is gone by then.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Maximum of that delay, which doubles each time.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Processes that worked for this long are replaced after the first delay again.
const WORKED_FOR: Duration = Duration::from_secs(60);
/// How long a network waits for the machine that replaces another one.
const REPLACED_WITHIN: Duration = Duration::from_secs(15);
/// An egress process answers in well under a millisecond; the limit allows for a host that swaps.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// Maximum length in bytes of a text of the egress process in a log or a message.
const MAX_TEXT: usize = 320;

/// A request of the supervisor.
#[derive(Debug)]
pub(super) enum Ask {
    Report(oneshot::Sender<NetworkReport>),
    /// Puts the record in force.
    Reload(oneshot::Sender<Result<(), NetworkFailure>>),
    Pins {
        is_replaced: bool,
        reply: oneshot::Sender<Vec<SavedPin>>,
    },
    Reattach(oneshot::Sender<Result<(), NetworkFailure>>),
    End(oneshot::Sender<()>),
}

pub(super) struct Keeping {
    sandbox: Arc<Sandbox>,
    directory: SandboxDirectory,
    program: PathBuf,
    log: Log,
    traffic: Traffic,
    pair: Option<Pair>,
    began: Instant,
    problem: Option<String>,
    restarts: u64,
    /// True if a proxy carries the connections of the pair, or carried those of the last one.
    has_proxy: bool,
    /// Number of lines that the log did not take.
    unlogged: u64,
    /// True if the last line in the log says that lines are left out.
    is_log_closed: bool,
    delay: Duration,
    retry_at: Option<Instant>,
}

/// What the task has to act on.
enum Due {
    Asked(Option<Ask>),
    Said(Result<EgressEvent, WireError>),
    Lines,
    Retry,
}

impl Keeping {
    /// Starts the network.
    pub(super) async fn start(
        sandbox: Arc<Sandbox>,
        directory: SandboxDirectory,
        program: PathBuf,
        log: Log,
    ) -> (Self, Result<(), NetworkFailure>) {
        let now = Instant::now();
        let traffic = Traffic::new(now);
        let mut keeping = Self {
            sandbox,
            directory,
            program,
            log,
            traffic,
            pair: None,
            began: now,
            problem: None,
            restarts: 0,
            has_proxy: false,
            unlogged: 0,
            is_log_closed: false,
            delay: FIRST_DELAY,
            retry_at: None,
        };
        let began = keeping.begin().await;
        if let Err(error) = &began {
            keeping.is_down(error);
        }
        (keeping, began)
    }

    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        loop {
            let due = tokio::select! {
                ask = asks.recv() => Due::Asked(ask),
                said = next(self.pair.as_mut()) => Due::Said(said),
                () = at(self.traffic.next()) => Due::Lines,
                () = at(self.retry_at) => Due::Retry,
            };
            match due {
                Due::Asked(Some(Ask::End(reply))) => {
                    self.end().await;
                    // A supervisor that does not wait has ended.
                    let _ = reply.send(());
                    return;
                }
                Due::Asked(None) => return self.end().await,
                Due::Asked(Some(ask)) => self.answer(ask).await,
                Due::Said(said) => {
                    if let Err(error) = said.and_then(|event| self.record(event)) {
                        self.lost(&error).await;
                    }
                }
                Due::Lines => {
                    let lines = self.traffic.due(Instant::now());
                    self.note(lines);
                }
                Due::Retry => self.retry().await,
            }
        }
    }

    async fn begin(&mut self) -> Result<(), NetworkFailure> {
        let record = self.settings()?;
        let pins = pins::take(&self.directory, &record.operator.opened);
        let pair = Pair::start(&self.directory, &self.program, &record, pins).await?;
        self.has_proxy = pair.fixed.has_proxy();
        self.pair = Some(pair);
        (self.began, self.problem, self.retry_at) = (Instant::now(), None, None);
        Ok(())
    }

    /// Returns the settings that are to be in force.
    fn settings(&mut self) -> Result<NetworkRecord, NetworkFailure> {
        let failed = |error: &dyn std::fmt::Display| NetworkFailure::Settings(error.to_string());
        let record = NetworkRecord::read(&self.directory).map_err(|error| failed(&error))?;
        let record = record.ok_or_else(|| failed(&"there are no network settings"))?;
        let held = present::hold(record.clone(), &self.sandbox.home).map_err(|error| failed(&error))?;
        if held.settings != record.settings || held.operator.opened != record.operator.opened {
            self.log.note("the operator does not permit all of the network settings any more");
        }
        Ok(held)
    }

    fn is_down(&mut self, error: &NetworkFailure) {
        let problem = error.to_string();
        if self.problem.as_ref() != Some(&problem) {
            self.log.note(format_args!("the network is down: {problem}"));
        }
        self.problem = Some(problem);
        self.retry_at = Some(Instant::now() + self.delay);
        self.delay = (2 * self.delay).min(LONGEST_DELAY);
    }

    /// The processes ended or broke the protocol.
    async fn lost(&mut self, error: &WireError) {
        let Some(pair) = self.pair.take() else { return };
        let failure = pair.failed(error).await;
        if self.began.elapsed() >= WORKED_FOR {
            self.delay = FIRST_DELAY;
        }
        self.is_down(&failure);
    }

    async fn retry(&mut self) {
        let why = self.problem.clone().unwrap_or_default();
        match self.begin().await {
            Ok(()) => {
                self.restarts += 1;
                self.log.note("the network is up again");
                self.note(vec![Event::NetworkRestarted { reason: why }]);
            }
            Err(error) => self.is_down(&error),
        }
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Report(reply) => {
                let counters = self.counters().await;
                let report = NetworkReport {
                    attached: self.pair.is_some(),
                    problem: self.problem.clone(),
                    restarts: self.restarts,
                    unlogged: self.unlogged,
                    counters,
                };
                let _ = reply.send(report);
            }
            Ask::Reload(reply) => {
                let reloaded = self.reload().await;
                let _ = reply.send(reloaded);
            }
            Ask::Pins { is_replaced, reply } => {
                let pins = self.pins().await;
                if is_replaced {
                    self.retry_at = Some(Instant::now() + REPLACED_WITHIN);
                    if let Some(pair) = self.pair.take() {
                        pair.kill().await;
                    }
                    self.problem = Some("the machine is being replaced".to_owned());
                }
                let _ = reply.send(pins);
            }
            Ask::Reattach(reply) => {
                let began = self.replace_pair().await;
                let _ = reply.send(began);
            }
            Ask::End(reply) => drop(reply),
        }
    }

    /// Starts other processes, with what the guest got as answers.
    async fn replace_pair(&mut self) -> Result<(), NetworkFailure> {
        if self.pair.is_some() {
            let pins = self.pins().await;
            // Without pins the guest asks for its names again.
            let _ = KeptPins::of(pins).write(&self.directory);
        }
        if let Some(pair) = self.pair.take() {
            pair.kill().await;
        }
        let began = self.begin().await;
        if let Err(error) = &began {
            self.is_down(error);
        }
        began
    }

    /// Puts the record in force, in the processes that run or in others.
    async fn reload(&mut self) -> Result<(), NetworkFailure> {
        let read = self.settings().and_then(|record| {
            let wanted = record.egress_settings(&self.directory);
            let wanted = wanted.map_err(|error| NetworkFailure::Settings(error.to_string()))?;
            let fixed = Fixed::of(&record, &self.directory)?;
            Ok((record, wanted, fixed))
        });
        let (record, wanted, fixed) = match read {
            Ok(read) => read,
            Err(error) => {
                // What is in force may be more than what was recorded.
                if let Some(pair) = self.pair.take() {
                    pair.kill().await;
                }
                self.is_down(&error);
                return Err(error);
            }
        };
        if self.pair.as_ref().is_some_and(|pair| pair.fixed != fixed) {
            return self.replace_pair().await;
        }
        if let Some(pair) = &mut self.pair {
            let configured = timeout(ANSWER_WITHIN, pair.configure(&record, wanted)).await;
            let answer = match configured {
                Ok(Ok(())) => {
                    let is_answer = |event| match event {
                        EgressEvent::Configured(result) => Ok(result),
                        other => Err(Box::new(other)),
                    };
                    self.wait_for(is_answer).await
                }
                Ok(Err(error)) => Err(error),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            };
            match answer {
                Ok(Ok(())) => return Ok(()),
                // It refuses everything now, which is what an invalid record deserves.
                Ok(Err(reason)) => return Err(NetworkFailure::Settings(short(&reason))),
                // Which settings are in force is not known, so the processes are replaced.
                Err(error) => self.lost(&error).await,
            }
        }
        let began = self.begin().await;
        if let Err(error) = &began {
            self.is_down(error);
        }
        began
    }

    async fn pins(&mut self) -> Vec<SavedPin> {
        let is_answer = |event| match event {
            EgressEvent::Pins(pins) => Ok(pins),
            other => Err(Box::new(other)),
        };
        self.ask(EgressRequest::Pins, is_answer).await.unwrap_or_default()
    }

    async fn counters(&mut self) -> Option<TrafficCounters> {
        let is_answer = |event| match event {
            EgressEvent::Counters(counters) => Ok(counters),
            other => Err(Box::new(other)),
        };
        self.ask(EgressRequest::Counters, is_answer).await
    }

    /// Asks the egress process. If it does not answer, it is replaced.
    async fn ask<T>(
        &mut self,
        request: EgressRequest,
        is_answer: impl Fn(EgressEvent) -> Result<T, Box<EgressEvent>>,
    ) -> Option<T> {
        let pair = self.pair.as_ref()?;
        let answer = match timeout(ANSWER_WITHIN, pair.egress.packets.send(&request, &[])).await {
            Ok(Ok(())) => self.wait_for(is_answer).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.lost(&error).await;
                None
            }
        }
    }

    /// Records events until one is the answer.
    async fn wait_for<T>(
        &mut self,
        is_answer: impl Fn(EgressEvent) -> Result<T, Box<EgressEvent>>,
    ) -> Result<T, WireError> {
        let until = Instant::now() + ANSWER_WITHIN;
        loop {
            let next = timeout_at(until, next(self.pair.as_mut())).await;
            let event = next.map_err(|_| WireError::Io(io::ErrorKind::TimedOut.into()))??;
            match is_answer(event) {
                Ok(answer) => return Ok(answer),
                Err(event) => self.record(*event)?,
            }
        }
    }

    /// Records what the process reports by itself.
    fn record(&mut self, event: EgressEvent) -> Result<(), WireError> {
        let now = Instant::now();
        let line = match event {
            EgressEvent::Flow(flow) => self.traffic.flow(flow, self.has_proxy, now),
            EgressEvent::Name(name) => self.traffic.name(name, now),
            EgressEvent::Blocked(blocked) => self.traffic.blocked(blocked, now),
            EgressEvent::Omitted(records) => {
                self.traffic.omitted(records);
                None
            }
            EgressEvent::Configured(Err(reason)) => {
                let reason = short(&reason);
                self.log.note(format_args!(
                    "the settings of the network are not valid, so everything is refused: {reason}"
                ));
                self.problem = Some(format!("everything is refused: {reason}"));
                None
            }
            // A process that did not answer in time was replaced, so these answer nothing.
            EgressEvent::Ready | EgressEvent::Configured(Ok(())) | EgressEvent::Pins(_) | EgressEvent::Counters(_) => {
                return Err(WireError::Unexpected("answer without a request"));
            }
        };
        self.note(line);
        Ok(())
    }

    fn note(&mut self, lines: impl IntoIterator<Item = Event>) {
        let trail = self.sandbox.trail();
        for line in lines {
            if trail.note_of_guest(line) {
                self.is_log_closed = false;
                continue;
            }
            // The rest of the log is the owner's, except for one line about what is missing.
            self.unlogged = self.unlogged.saturating_add(1);
            if !self.is_log_closed {
                self.is_log_closed = trail.append(Event::NetworkUnlogged).is_ok();
            }
        }
    }

    async fn end(mut self) {
        if let Some(pair) = self.pair.take() {
            for event in pair.finish().await {
                if self.record(event).is_err() {
                    break;
                }
            }
        }
        let lines = self.traffic.all();
        self.note(lines);
        if self.unlogged > 0 {
            self.log.note(format_args!("{} lines of the network are not in the audit log", self.unlogged));
        }
    }
}

/// Returns a text of the egress process for a log or a message: one short line.
fn short(text: &str) -> String {
    let mut line = one_line(&text[..text.floor_char_boundary(MAX_TEXT)]);
    line.truncate(line.floor_char_boundary(MAX_TEXT));
    line
}

async fn next(pair: Option<&mut Pair>) -> Result<EgressEvent, WireError> {
    match pair {
        Some(pair) => pair.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until that time, or indefinitely.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
