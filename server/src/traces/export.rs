//! Traces by OTLP over HTTP, where an operator names a collector: a span for each request, a child of the client's own where it
//! sent `traceparent` (W3C Trace Context), and spans for what the registry did meanwhile. What they say is what the log
//! says, and no more.

use super::TracesError;
use axum::http::HeaderMap;
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use std::collections::HashMap;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;

/// Exports in the background; what is left is sent when dropped.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// To the collector whose base is `endpoint`, as `http://127.0.0.1:4318`.
    ///
    /// # Errors
    /// When it is no address. A collector that does not answer costs spans and nothing else.
    pub fn to(endpoint: &str) -> Result<Self, TracesError> {
        let failed = |problem: String| TracesError::Endpoint { endpoint: endpoint.to_owned(), problem };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let resource = Resource::builder()
            .with_service_name("sandboxvm")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    /// What has the program's spans exported.
    #[must_use]
    pub fn layer<S: Subscriber + for<'s> LookupSpan<'s>>(&self) -> OpenTelemetryLayer<S, SdkTracer> {
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("sandboxvm"))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // A collector that is gone has nothing to be told.
        let _ = self.0.shutdown();
    }
}

/// Makes a request's span a child of the client's, where it says that it has one.
pub(crate) fn continue_from(headers: &HeaderMap, span: &Span) {
    if headers.contains_key("traceparent") {
        let context = TraceContextPropagator::new().extract(&Headers(headers));
        // Where nothing is exported there is no context to set.
        let _ = span.set_parent(context);
    }
}

/// `traceparent` of the current span, where it is exported.
pub(crate) fn current() -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove("traceparent")
}

/// A span that continues the one whose `traceparent` this is.
pub(crate) fn continued(name: &'static str, parent: Option<&str>) -> Span {
    let Some(parent) = parent else { return Span::none() };
    let span = tracing::info_span!("continued", otel.name = name);
    let carrier = HashMap::from([("traceparent".to_owned(), parent.to_owned())]);
    // Where nothing is exported there is no context to set.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
    span
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}
