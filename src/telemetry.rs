//! What can be seen from outside: logs with one span per call, metrics, health over HTTP.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes as Body, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::net::TcpListener;
use tower::{Layer, Service};
use tracing::{Instrument, Span, field::Empty, level_filters::LevelFilter};
use tracing_subscriber::{Layer as _, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    engine::{Engine, work::Work},
    error::{Doing, Result},
    sys::cmd::Commands,
    trace::{TRACEPARENT, Trace},
};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends logs to standard error. Of the libraries below us only warnings are shown, until `level` is trace.
pub fn log_to_stderr(level: LevelFilter, format: LogFormat) {
    let others = if level == LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    let filter = Targets::new().with_default(others).with_target("lagan", level);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let registry = tracing_subscriber::registry();
    // Only a second call fails, and the first one's choice stands then.
    match format {
        LogFormat::Text => registry.with(layer.with_target(false).with_filter(filter)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true).with_filter(filter)).try_init(),
    }
    .unwrap_or_default();
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    rpc: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabel {
    rpc: String,
}

/// Counters of calls. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<CallLabels, Counter>,
    seconds: Family<RpcLabel, Histogram>,
    next: Arc<AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        // 0.1 ms to 105 s, each bucket four times the one before.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 4.0, 11));
        let seconds = Family::new_with_constructor(histogram);
        Self { calls: Family::default(), seconds, next: Arc::default() }
    }
}

/// Codes of gRPC for calls that nobody here may have made under their name.
const NOT_OFFERED: &str = "12";
const DENIED: &str = "7";

/// Sees every call: a span around it, a count and a time of it.
#[derive(Clone, Debug)]
pub struct RpcLayer {
    metrics: Metrics,
}

impl RpcLayer {
    /// A layer that counts in `metrics`.
    #[must_use]
    pub const fn new(metrics: Metrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService { inner, metrics: self.metrics.clone() }
    }
}

/// A service whose calls are seen.
#[derive(Clone, Debug)]
pub struct RpcService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B, R> Service<Request<B>> for RpcService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let rpc = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let trace = Trace::of(request.headers().get(TRACEPARENT).and_then(|header| header.to_str().ok()));
        let span = span_of(&rpc, self.metrics.next.fetch_add(1, Ordering::Relaxed), trace);
        request.extensions_mut().insert(trace);
        let (metrics, begun) = (self.metrics.clone(), Instant::now());
        let answer = span.in_scope(|| self.inner.call(request));
        Box::pin(
            async move {
                let answer = answer.await.map(with_message);
                // An error stands in the head of the answer; success in its trailers, still to come.
                let status = answer.as_ref().ok().and_then(|a| a.headers().get("grpc-status"));
                let code = status.and_then(|status| status.to_str().ok()).unwrap_or("0").to_owned();
                let took = begun.elapsed();
                tracing::debug!(
                    code,
                    micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                    "answered"
                );
                // Names that nobody has here are the caller's: each would be remembered for ever.
                let rpc =
                    if matches!(code.as_str(), NOT_OFFERED | DENIED) { "refused".to_owned() } else { rpc };
                metrics.seconds.get_or_create(&RpcLabel { rpc: rpc.clone() }).observe(took.as_secs_f64());
                metrics.calls.get_or_create(&CallLabels { rpc, code }).inc();
                answer
            }
            .instrument(span),
        )
    }
}

/// An error never comes without a message. The one that did would be that of a service which is not offered at all,
/// since no handler of ours sees such a call.
fn with_message<R>(mut answer: Response<R>) -> Response<R> {
    let headers = answer.headers_mut();
    if headers.get("grpc-status").is_some_and(|status| status != "0") {
        let message = header::HeaderValue::from_static("not offered by this process");
        headers.entry("grpc-message").or_insert(message);
    }
    answer
}

/// The span of one call. What asks every few seconds is only seen by those who look for it.
fn span_of(rpc: &str, request: u64, trace: Trace) -> Span {
    macro_rules! span {
        ($level:ident) => {
            tracing::$level!(
                "rpc",
                rpc,
                request,
                %trace,
                volume = Empty,
                snapshot = Empty,
                group = Empty,
                node = Empty,
                pool = Empty
            )
        };
    }
    match rpc {
        "Probe"
        | "GetPluginInfo"
        | "GetPluginCapabilities"
        | "NodeGetCapabilities"
        | "GroupControllerGetCapabilities"
        | "ControllerGetCapabilities" => span!(trace_span),
        _ => span!(error_span),
    }
}

/// Registers further figures, each time that they are asked for.
pub type Figures = Arc<dyn Fn(&mut Registry) + Send + Sync>;

/// What health and metrics are read from.
#[derive(Clone)]
pub struct Sources {
    /// Counters of calls.
    pub metrics: Metrics,
    /// What runs.
    pub work: Work,
    /// The controller role, where it is served.
    pub engine: Option<Engine>,
    /// Programs started.
    pub commands: Arc<Commands>,
    /// What others add: figures of the cluster.
    pub more: Option<Figures>,
}

/// Begins to answer HTTP at `address`: `/healthz` and `/readyz` with 200, `/metrics` with Prometheus' text format.
///
/// # Errors
/// Those of bind(2).
pub async fn serve_http(address: SocketAddr, sources: Sources) -> Result<()> {
    let listener = TcpListener::bind(address).await.doing(|| {
        format!("serve health and metrics on {address} (another process may; set `http` to another address or \"off\")")
    })?;
    drop(tokio::spawn(async move {
        // A bound on connections: scrapers are few.
        let slots = Arc::new(tokio::sync::Semaphore::new(16));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else { continue };
            let sources = sources.clone();
            drop(tokio::spawn(async move {
                let answer = service_fn(|request: Request<hyper::body::Incoming>| {
                    let sources = sources.clone();
                    async move { Ok::<_, Infallible>(answer(&sources, request.uri().path()).await) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(std::time::Duration::from_secs(5));
                // A client that goes away is no event.
                http.serve_connection(TokioIo::new(stream), answer).await.unwrap_or_default();
                drop(slot);
            }));
        }
    }));
    Ok(())
}

async fn answer(sources: &Sources, path: &str) -> Response<Full<Body>> {
    let (status, kind, text) = match path {
        "/healthz" | "/readyz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/metrics" => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            sources.text().await.unwrap_or_default(),
        ),
        _ => (StatusCode::NOT_FOUND, "text/plain", "expected /healthz, /readyz or /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Body::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    pool: String,
    part: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    call: String,
    subject: String,
}

impl Sources {
    /// Everything at this moment; nothing is measured in between.
    async fn text(&self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("lagan");
        registry.register("rpcs", "Calls answered", self.metrics.calls.clone());
        registry.register("rpc_seconds", "Time that calls took", self.metrics.seconds.clone());
        let started = Counter::<u64>::default();
        started.inc_by(self.commands.started());
        registry.register("programs_started", "Programs of other projects started", started);
        self.register_operations(&mut registry);
        if let Some(engine) = &self.engine {
            register_engine(engine, &mut registry).await;
        }
        if let Some(more) = &self.more {
            more(&mut registry);
        }
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }

    fn register_operations(&self, registry: &mut Registry) {
        let (done, total, seconds) = (
            Family::<OperationLabels, Gauge>::default(),
            Family::<OperationLabels, Gauge>::default(),
            Family::<OperationLabels, Gauge>::default(),
        );
        for running in self.work.running() {
            let labels = OperationLabels { call: running.call.to_owned(), subject: running.subject };
            done.get_or_create(&labels).set(running.progress.0.signed());
            total.get_or_create(&labels).set(running.progress.1.signed());
            let elapsed = i64::try_from(running.elapsed.as_secs()).unwrap_or(i64::MAX);
            seconds.get_or_create(&labels).set(elapsed);
        }
        registry.register("operation_bytes_done", "Bytes that a running operation has copied", done);
        registry.register("operation_bytes_total", "Bytes that a running operation has to copy", total);
        registry.register("operation_seconds", "Time for which an operation has been running", seconds);
    }
}

async fn register_engine(engine: &Engine, registry: &mut Registry) {
    let counts = engine.counts();
    let mut gauge = |name: &str, help: &str, value: usize| {
        let gauge = Gauge::<i64, AtomicI64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge("volumes", "Volumes in open pools", counts.volumes);
    gauge("volumes_published", "Volumes published to a node", counts.granted);
    gauge("snapshots", "Snapshots in open pools", counts.snapshots);
    let flushes = Family::<PoolLabel, Counter>::default();
    let (used, level) = (Family::<PartLabels, Gauge>::default(), Family::<PartLabels, Gauge>::default());
    let families: [Family<PoolLabel, Gauge>; 4] = std::array::from_fn(|_| Family::default());
    for pool in engine.pool_states().await {
        let label = PoolLabel { pool: pool.name.to_string() };
        flushes.get_or_create(&label).inc_by(pool.flushes);
        families[0].get_or_create(&label).set(i64::from(pool.room.is_some()));
        for fill in pool.fills {
            let label = PartLabels { pool: pool.name.to_string(), part: fill.part.name() };
            used.get_or_create(&label).set(fill.used.signed());
            level.get_or_create(&label).set(i64::from(fill.level()));
        }
        if let Some((capacity, committed)) = pool.room {
            families[1].get_or_create(&label).set(capacity.total.signed());
            families[2].get_or_create(&label).set(capacity.free.signed());
            families[3].get_or_create(&label).set(committed.signed());
        }
    }
    let [open, total, free, committed] = families;
    registry.register("pool_bytes_used", "What is used of a part of the pool", used);
    registry.register(
        "pool_fill_level",
        "The highest of 80, 90 and 95 per cent that is reached, or 0",
        level,
    );
    registry.register("pool_flushes", "Flushes to the pool's disk", flushes);
    registry.register("pool_open", "1 where the pool can be used", open);
    registry.register("pool_bytes_total", "Space of the pool", total);
    registry.register("pool_bytes_free", "Free space of the pool", free);
    registry.register("pool_bytes_committed", "Space promised to volumes and kept by snapshots", committed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_callers_invent_are_not_remembered() {
        let metrics = Metrics::default();
        for code in [NOT_OFFERED, DENIED] {
            let refuse = tower::service_fn(move |_: Request<()>| async move {
                Ok::<_, Infallible>(Response::builder().header("grpc-status", code).body(()).unwrap())
            });
            let mut service = RpcLayer::new(metrics.clone()).layer(refuse);
            for number in 0..100 {
                let path = format!("http://host/csi.v1.Identity/Invented{number}");
                service.call(Request::post(path).body(()).unwrap()).await.unwrap();
            }
        }
        let mut registry = Registry::default();
        registry.register("rpcs", "Calls answered", metrics.calls);
        registry.register("rpc_seconds", "Time that calls took", metrics.seconds);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("rpc=\"refused\",code=\"7\"} 100") && !text.contains("Invented"), "{text}");
    }
}
