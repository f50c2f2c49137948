//! Spans as OpenTelemetry has them, sent to a collector over HTTP. The SDK's queue holds 2048 spans (`OTEL_BSP_*` change
//! that); what does not fit is dropped. Its own thread sends; that a collector does not answer is logged once, until one
//! answers again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, Uri};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, TracerProvider};
use opentelemetry::{Array, Context, Key, KeyValue, StringValue};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData, SpanExporter};

use super::{Ending, Origin, PATIENCE, TracesError, Value, attributes};

/// Where collectors take traces over HTTP.
const PATH: &str = "/v1/traces";

/// Makes spans and sends them.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends to this address: a URL, with or without `/v1/traces`. Headers, timeout, sampling, the service's name and the
    /// queue are what the variables of OpenTelemetry's SDK say (`OTEL_EXPORTER_OTLP_HEADERS`, …).
    pub fn start(endpoint: &str) -> Result<Self, TracesError> {
        let endpoint = address(endpoint)?;
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let protocol =
            variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
        if let Some(protocol) = protocol.filter(|protocol| protocol != "http/protobuf") {
            return Err(TracesError::Protocol(protocol));
        }
        let failed = |error: &dyn std::fmt::Display| TracesError::Start(format!("cannot send traces: {error}"));
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client().map_err(|error| failed(&error))?)
            .with_endpoint(&endpoint)
            .build()
            .map_err(|error| failed(&error))?;
        let exporter = Reported { exporter, endpoint, failing: AtomicBool::new(false) };
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
        let tracer = provider.tracer("host");
        Ok(Self { provider, tracer })
    }

    /// Adds the span of a choice that has ended.
    pub(crate) fn record(&self, model: &str, origin: &Origin, ending: Ending<'_>) {
        let now = SystemTime::now();
        let mut span = SpanBuilder::from_name("llm_request")
            .with_kind(SpanKind::Server)
            .with_start_time(now.checked_sub(origin.arrival.elapsed()).unwrap_or(now))
            .with_attributes(attributes(model, origin, ending).into_iter().map(|(key, value)| pair(key, value)))
            .start_with_context(&self.tracer, &origin.parent.0);
        if matches!(ending, Ending::Failed) {
            span.set_status(Status::error("the engine failed"));
        }
        span.end_with_timestamp(now);
    }

    /// Sends what waits, within a limit of time.
    pub(crate) async fn stop(self) {
        let sent = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(PATIENCE)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be sent");
        }
    }
}

/// The caller's span, or none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parent(Arc<Context>);

impl Parent {
    /// What `traceparent` and `tracestate` say. A malformed header is no parent.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        if !headers.contains_key("traceparent") {
            return Self::default();
        }
        Self(Arc::new(TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))))
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

fn pair(key: &'static str, value: Value) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::new(key, text),
        Value::Count(count) => KeyValue::new(key, count),
        Value::Number(number) => KeyValue::new(key, number),
        Value::Words(words) => {
            let words = words.into_iter().map(StringValue::from).collect();
            KeyValue::new(key, opentelemetry::Value::Array(Array::String(words)))
        }
    }
}

/// The whole URL.
fn address(given: &str) -> Result<String, TracesError> {
    let wrong = |message: &str| TracesError::Endpoint { endpoint: given.to_owned(), message: message.to_owned() };
    let uri: Uri = given.parse().map_err(|error: axum::http::uri::InvalidUri| wrong(&error.to_string()))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        Some(_) => return Err(wrong("neither http nor https")),
        None => return Err(wrong("it does not begin with http:// or https://")),
    }
    let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
    Ok(if bare { format!("{}{PATH}", given.trim_end_matches('/')) } else { given.to_owned() })
}

/// Calls from the SDK's thread, which has no runtime. Made on a thread of its own: it must not be made within a runtime.
fn client() -> Result<reqwest::blocking::Client, String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let build = || {
        let client = reqwest::blocking::Client::builder().user_agent(concat!("host/", env!("CARGO_PKG_VERSION")));
        client.build().map_err(|error| error.to_string())
    };
    std::thread::spawn(build).join().unwrap_or_else(|_| Err("the HTTP client cannot be made".into()))
}

/// What the environment says of this service; its name is `host` unless it says otherwise.
fn resource() -> Resource {
    let named = Resource::builder().build();
    let name = named.get(&Key::from_static_str("service.name")).map(|name| name.to_string()).unwrap_or_default();
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let builder = Resource::builder().with_attribute(version);
    if name.starts_with("unknown_service") { builder.with_service_name("host").build() } else { builder.build() }
}

/// An exporter whose failures are logged, the first of each row.
#[derive(Debug)]
struct Reported<E> {
    exporter: E,
    endpoint: String,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !failed_before => tracing::warn!(
                spans,
                "traces do not reach {} and are dropped: {error}; is it the port for HTTP (4318) and not that for gRPC? \
                 said once, until they do",
                self.endpoint
            ),
            Ok(()) if failed_before => tracing::info!("traces reach {} again", self.endpoint),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    /// Fails when told to.
    #[derive(Debug, Default)]
    struct Collector(AtomicBool);

    impl SpanExporter for Collector {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            if self.0.load(Ordering::Relaxed) {
                return Err(OTelSdkError::InternalFailure("refused".into()));
            }
            Ok(())
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn failures_are_said_once_until_one_batch_arrives() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let endpoint = "http://collector/v1/traces".to_owned();
        let reported = Reported { exporter: Collector::default(), endpoint, failing: AtomicBool::new(false) };
        tracing::subscriber::with_default(log, || {
            for fails in [false, true, true, true, false, false, true] {
                reported.exporter.0.store(fails, Ordering::Relaxed);
                assert_eq!(reported.export(Vec::new()).now_or_never().unwrap().is_err(), fails);
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("do not reach http://collector/v1/traces").count(), 2, "{text}");
        assert_eq!(text.matches("again").count(), 1, "{text}");
    }

    #[test]
    fn addresses() {
        for (given, whole) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("https://otel.example.org/", "https://otel.example.org/v1/traces"),
            ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
            ("http://localhost/mine?key=1", "http://localhost/mine?key=1"),
        ] {
            assert_eq!(address(given).unwrap(), whole);
        }
        for given in ["", "localhost:4317", "/v1/traces", "grpc://localhost:4317", "http://a b"] {
            let error = address(given).unwrap_err().to_string();
            assert!(error.contains("http://localhost:4318/v1/traces"), "{error}");
        }
    }
}
