//! Metrics, in Prometheus' format. No label names a secret, a pod or a namespace.

use crate::cache::CacheUse;
use crate::csi::control::FailureKind;
use crate::error::RequestError;
use crate::request::Route;
use latchkey_client::protocol::Code;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::runtime::Handle;

/// The buckets' upper bounds for a request's time, in seconds: from a cached answer to the deadline.
const REQUEST_BUCKETS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0,
];

/// The buckets' upper bounds for a cloud call's time, in seconds: from a vault nearby to two tries that both hang. The
/// chart's alert needs the bound of two seconds.
const BACKEND_BUCKETS: [f64; 12] = [
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.0, 3.0, 6.0, 10.0,
];

/// Everything that `/metrics` shows.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    /// The two above by route and code, looked up once: this is the hot path.
    hot: [RouteMetrics; Route::ALL.len()],
    batch_failures: IntCounterVec,
    backend_seconds: HistogramVec,
    backend_errors: IntCounterVec,
    attestations: IntCounterVec,
    exchanges: IntCounterVec,
    cache: [IntCounter; CacheUse::ALL.len()],
    pub(crate) sessions: IntGaugeVec,
    pub(crate) connections: IntGauge,
    connections_refused: IntCounterVec,
    pub(crate) pods: IntGauge,
    pub(crate) watch_failures: IntCounter,
    pub(crate) lookup_failures: IntCounter,
    pub(crate) audit_queue: IntGauge,
    pub(crate) socket_reached: IntGauge,
    tasks: IntGauge,
    pub(crate) volumes: IntGauge,
    publishes: IntCounterVec,
    fillings: IntCounterVec,
}

#[derive(Debug, Default)]
struct RouteMetrics {
    seconds: OnceLock<Histogram>,
    ok: OnceLock<IntCounter>,
    by_code: [OnceLock<IntCounter>; Code::ALL.len()],
}

// === impl Metrics ===

impl Metrics {
    /// Makes all metrics, at zero.
    ///
    /// # Errors
    ///
    /// If a name is registered twice, which is a bug.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            kept(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let counter = |name: &str, help: &str| kept(&registry, IntCounter::new(name, help));
        let times = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            kept(&registry, HistogramVec::new(options, labels))
        };
        let gauge = |name: &str, help: &str| kept(&registry, IntGauge::new(name, help));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            kept(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        gauges(
            "latchkey_build_info",
            "The version that runs; always 1.",
            &["version"],
        )?
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
        let metrics = Self {
            requests: counters(
                "latchkey_requests_total",
                "Requests on the workload socket by route and by how they ended.",
                &["route", "code"],
            )?,
            request_seconds: times(
                "latchkey_request_seconds",
                "Time from a request's head to its answer.",
                &REQUEST_BUCKETS,
                &["route"],
            )?,
            hot: Default::default(),
            batch_failures: counters(
                "latchkey_batch_failures_total",
                "Batches that were answered, by what became of some name of theirs.",
                &["code"],
            )?,
            backend_seconds: times(
                "latchkey_backend_seconds",
                "Time of the calls to a cloud.",
                &BACKEND_BUCKETS,
                &["backend", "operation"],
            )?,
            backend_errors: counters(
                "latchkey_backend_errors_total",
                "Calls to a cloud that did not succeed, by what the caller was told.",
                &["backend", "code"],
            )?,
            attestations: counters(
                "latchkey_attestations_total",
                "Peers attested, or why not.",
                &["outcome"],
            )?,
            exchanges: counters(
                "latchkey_exchanges_total",
                "Subject tokens exchanged for sessions.",
                &["backend", "outcome"],
            )?,
            cache: {
                let cache = counters(
                    "latchkey_cache_total",
                    "What the value cache did for a read.",
                    &["outcome"],
                )?;
                CacheUse::ALL.map(|outcome| cache.with_label_values(&[outcome.as_str()]))
            },
            sessions: gauges("latchkey_sessions", "Cloud sessions at hand.", &["backend"])?,
            connections: gauge("latchkey_connections", "Open connections of workloads.")?,
            connections_refused: counters(
                "latchkey_connections_refused_total",
                "Connections closed at once, and why.",
                &["reason"],
            )?,
            pods: gauge("latchkey_pods", "Pods of this node that are known.")?,
            watch_failures: counter(
                "latchkey_watch_failures_total",
                "Attempts to list or watch this node's pods that failed.",
            )?,
            lookup_failures: counter(
                "latchkey_lookup_failures_total",
                "Attempts to look up a service account that failed.",
            )?,
            audit_queue: gauge(
                "latchkey_audit_queue",
                "Audit lines that wait to be written.",
            )?,
            socket_reached: gauge(
                "latchkey_socket_reached",
                "1 while this agent's own socket answers at its path.",
            )?,
            tasks: gauge(
                "latchkey_tasks",
                "Tasks of the agent's runtime that have not ended.",
            )?,
            volumes: gauge(
                "latchkey_csi_volumes",
                "Volumes of pods that are listened in.",
            )?,
            publishes: counters(
                "latchkey_csi_publishes_total",
                "Volumes that the mounter brought, each repetition of the kubelet's included.",
                &["outcome"],
            )?,
            fillings: counters(
                "latchkey_csi_fillings_total",
                "Times that the files of a volume were read from the vaults, and how that ended.",
                &["outcome"],
            )?,
            registry,
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// Shows the series that alerts wait for before anything happens: Prometheus sees no increase in a counter whose
    /// first sample is its first event.
    fn begin_at_zero(&self) {
        for outcome in [
            "ok",
            "identity_changed",
            "nested_pod_seen",
            "outside_root",
            "outside_pid_namespace",
            "unreadable_peer",
            "malformed",
            "controllers_disagree",
        ] {
            self.attestations.with_label_values(&[outcome]);
        }
        for reason in ["exhausted", "recycled_pid"] {
            self.connections_refused.with_label_values(&[reason]);
        }
        for code in [
            Code::Denied,
            Code::Internal,
            Code::NoRole,
            Code::NotFound,
            Code::Timeout,
            Code::Unavailable,
        ]
        .map(Code::as_str)
        {
            self.batch_failures.with_label_values(&[code]);
            for route in Route::ALL {
                self.requests.with_label_values(&[route.as_str(), code]);
            }
        }
    }

    /// Does the same for series that depend on the configuration.
    pub(crate) fn begin_backends<'a>(&self, names: impl Iterator<Item = &'a String>) {
        for name in names {
            for code in [Code::Throttled, Code::Timeout, Code::Unavailable].map(Code::as_str) {
                self.backend_errors
                    .with_label_values(&[name.as_str(), code]);
                self.exchanges.with_label_values(&[name.as_str(), code]);
            }
        }
    }

    /// Counts a read of a volume's files.
    pub(crate) fn filling(&self, failure: Option<FailureKind>) {
        let outcome = failure.map_or("ok", FailureKind::as_str);
        self.fillings.with_label_values(&[outcome]).inc();
    }

    /// Counts a volume that the mounter brought.
    pub(crate) fn publish(&self, failure: Option<FailureKind>) {
        let outcome = failure.map_or("ok", FailureKind::as_str);
        self.publishes.with_label_values(&[outcome]).inc();
    }

    /// Counts and times an answered request.
    pub(crate) fn request(&self, route: Route, code: Option<Code>, took: Duration) {
        let hot = &self.hot[route as usize];
        let counter = |code: &str| self.requests.with_label_values(&[route.as_str(), code]);
        match code {
            None => hot.ok.get_or_init(|| counter("ok")).inc(),
            Some(code) => {
                hot.by_code[code as usize]
                    .get_or_init(|| counter(code.as_str()))
                    .inc();
            }
        }
        hot.seconds
            .get_or_init(|| self.request_seconds.with_label_values(&[route.as_str()]))
            .observe(took.as_secs_f64());
    }

    /// Counts a batch in which names failed with this code, however many.
    pub(crate) fn batch_failed(&self, code: Code) {
        self.batch_failures
            .with_label_values(&[code.as_str()])
            .inc();
    }

    /// Counts and times a call to a cloud.
    pub(crate) fn backend_call(
        &self,
        backend: &str,
        operation: &str,
        took: Duration,
        code: Option<Code>,
    ) {
        self.backend_seconds
            .with_label_values(&[backend, operation])
            .observe(took.as_secs_f64());
        if let Some(code) = code {
            self.backend_errors
                .with_label_values(&[backend, code.as_str()])
                .inc();
        }
    }

    /// Counts an exchange.
    pub(crate) fn exchange(&self, backend: &str, error: Option<&RequestError>) {
        let outcome = error.map_or("ok", |error| error.code.as_str());
        self.exchanges.with_label_values(&[backend, outcome]).inc();
    }

    /// Counts a connection that was closed at once.
    pub(crate) fn refused(&self, reason: &str) {
        self.connections_refused.with_label_values(&[reason]).inc();
    }

    /// Counts an attestation by its outcome.
    pub(crate) fn attestation(&self, outcome: &str) {
        self.attestations.with_label_values(&[outcome]).inc();
    }

    /// Counts what the value cache did.
    pub(crate) fn cache(&self, outcome: CacheUse) {
        self.cache[outcome as usize].inc();
    }

    /// The text that Prometheus scrapes.
    pub(crate) fn text(&self) -> String {
        let tasks = Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks());
        self.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        let mut text = String::new();
        // Writing into memory fails only for a metric without a name.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }
}

/// Registers what was made, and returns it.
fn kept<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let made = made?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_alert_waits_for_is_shown_before_it_happens() {
        let metrics = Metrics::new().expect("no name twice");
        metrics.begin_backends([String::from("vault")].iter());
        let text = metrics.text();
        for series in [
            r#"latchkey_backend_errors_total{backend="vault",code="throttled"}"#,
            r#"latchkey_backend_errors_total{backend="vault",code="timeout"}"#,
            r#"latchkey_backend_errors_total{backend="vault",code="unavailable"}"#,
            r#"latchkey_exchanges_total{backend="vault",outcome="timeout"}"#,
            r#"latchkey_exchanges_total{backend="vault",outcome="unavailable"}"#,
            r#"latchkey_attestations_total{outcome="identity_changed"}"#,
            r#"latchkey_attestations_total{outcome="nested_pod_seen"}"#,
            r#"latchkey_attestations_total{outcome="ok"}"#,
            r#"latchkey_attestations_total{outcome="outside_root"}"#,
            r#"latchkey_attestations_total{outcome="unreadable_peer"}"#,
            r#"latchkey_connections_refused_total{reason="exhausted"}"#,
            r#"latchkey_connections_refused_total{reason="recycled_pid"}"#,
            r#"latchkey_requests_total{code="denied",route="secret"}"#,
            r#"latchkey_requests_total{code="internal",route="secret"}"#,
            r#"latchkey_requests_total{code="no_role",route="secret"}"#,
            r#"latchkey_requests_total{code="not_found",route="secret"}"#,
            r#"latchkey_requests_total{code="timeout",route="batch"}"#,
            r#"latchkey_requests_total{code="unavailable",route="secret"}"#,
            r#"latchkey_batch_failures_total{code="unavailable"}"#,
            r#"latchkey_cache_total{outcome="stale"}"#,
            "latchkey_lookup_failures_total",
            "latchkey_watch_failures_total",
        ] {
            let line = format!("{series} 0");
            assert!(text.lines().any(|other| other == line), "{line}");
        }
    }

    #[test]
    fn every_metric_of_the_contract_is_shown() {
        let metrics = Metrics::new().expect("no name twice");
        metrics.request(Route::Secret, None, Duration::from_micros(20));
        metrics.request(Route::Secret, Some(Code::Denied), Duration::from_micros(20));
        metrics.backend_call("aws", "read", Duration::from_millis(5), Some(Code::Denied));
        metrics.exchange("aws", None);
        metrics.attestation("ok");
        metrics.cache(CacheUse::Hit);
        metrics.sessions.with_label_values(&["aws"]).set(1);
        let text = metrics.text();
        for line in [
            "latchkey_requests_total{code=\"ok\",route=\"secret\"} 1",
            "latchkey_requests_total{code=\"denied\",route=\"secret\"} 1",
            "latchkey_request_seconds_count{route=\"secret\"} 2",
            "latchkey_backend_seconds_count{backend=\"aws\",operation=\"read\"} 1",
            "latchkey_backend_errors_total{backend=\"aws\",code=\"denied\"} 1",
            "latchkey_attestations_total{outcome=\"ok\"} 1",
            "latchkey_sessions{backend=\"aws\"} 1",
            "latchkey_exchanges_total{backend=\"aws\",outcome=\"ok\"} 1",
            "latchkey_cache_total{outcome=\"hit\"} 1",
            "latchkey_connections 0",
            "latchkey_pods 0",
            "latchkey_audit_queue 0",
            "latchkey_socket_reached 0",
            "latchkey_watch_failures_total 0",
            "latchkey_build_info{version=",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
