//! Metrics for Prometheus, on a separate listener: how busy a server is concerns its operator alone.

use crate::{
    app::App,
    channel::request::Figures,
    metering::{
        ends::{Ended, Ends},
        traffic::Passed,
    },
};
use axum::http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry as Register,
};
use std::{fmt, time::Duration};

/// Which listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Plane {
    Control,
    Sandbox,
}

impl Plane {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Sandbox => "sandbox",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    plane: Plane,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    plane: Plane,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTemplate {
    template: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

pub(crate) struct Metrics {
    register: Register,
    answered: Family<Answered, Counter>,
    took: Family<Of, Histogram, fn() -> Histogram>,
    in_flight: Family<Of, Gauge>,
    sandboxes: Family<InState, Gauge>,
    armed: Family<OfTemplate, Gauge>,
    ends: Ends,
    /// Connections, refusals, questions, bytes sent and received.
    network: [Counter; 5],
}

/// From a millisecond to two minutes.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// A request that is worked on; ends when dropped.
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn of(app: &App) -> Self {
        let mut register = Register::with_prefix("sandboxvm");
        let answered = Family::default();
        register.register("requests", "Requests answered", answered.clone());
        let took = Family::new_with_constructor(seconds as fn() -> Histogram);
        register.register("request_seconds", "From a request's headers to its answer's", took.clone());
        let in_flight = Family::default();
        register.register("requests_in_flight", "Requests whose answer has not begun", in_flight.clone());
        let sandboxes = Family::default();
        register.register("sandboxes", "Sandboxes of this server", sandboxes.clone());
        let armed = Family::default();
        register.register("pool_armed", "Machines that wait in a template's pool", armed.clone());
        register.register(
            "failed_credentials",
            "Keys, tokens and signatures that did not match",
            app.pace.failures.count.clone(),
        );
        let ends = Ends::default();
        register.register("machines_ended_oddly", "Machines that ended by themselves, by how", ends.clone());
        let network = [
            ("network_connections", "Connections of sandboxes that were allowed"),
            ("network_refusals", "Connections and DNS questions of sandboxes that were refused"),
            ("network_queries", "DNS questions of sandboxes that were answered"),
            ("network_sent_bytes", "Bytes that sandboxes sent on the network"),
            ("network_received_bytes", "Bytes that sandboxes received on the network"),
        ];
        let network = network.map(|(name, help)| {
            let counter = Counter::default();
            register.register(name, help, counter.clone());
            counter
        });
        Self { register, answered, took, in_flight, sandboxes, armed, ends, network }
    }

    pub(super) fn begin(&self, plane: Plane) -> InFlight {
        let gauge = self.in_flight.get_or_create(&Of { plane }).clone();
        gauge.inc();
        InFlight(gauge)
    }

    pub(super) fn ended(&self, plane: Plane, status: StatusCode, took: Duration) {
        self.answered.get_or_create(&Answered { plane, status: status.as_u16() }).inc();
        self.took.get_or_create(&Of { plane }).observe(took.as_secs_f64());
    }

    /// All of it, in the text format of OpenMetrics.
    pub(crate) fn render(&self, figures: &Figures) -> Result<String, fmt::Error> {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in [("running", figures.running), ("paused", figures.paused)] {
            self.sandboxes.get_or_create(&InState { state }).set(gauge(count));
        }
        for (name, armed) in &figures.armed {
            self.armed.get_or_create(&OfTemplate { template: name.clone() }).set(gauge(*armed));
        }
        for (how, count) in &figures.ends {
            // The launcher counts. It outlives fronts, so its count is never behind this one.
            let counter = self.ends.get_or_create(&Ended { how: *how });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let Passed { connections, refused, queries, sent, received } = figures.traffic;
        for (counter, count) in self.network.iter().zip([connections, refused, queries, sent, received]) {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        let mut text = String::new();
        text::encode(&mut text, &self.register)?;
        Ok(text)
    }
}
