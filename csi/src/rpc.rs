//! What all RPCs have in common: one line of log, figures by method and code, the caller's deadline.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};
use tracing::Instrument;

use crate::error::CsiError;
use crate::op_guard::Operations;

/// Upper bounds of the histogram of durations (seconds).
const DURATION_BUCKETS: [f64; 9] = [0.01, 0.05, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// Figures of all RPCs.
#[derive(Debug, Default)]
pub struct Rpcs {
    calls: Family<Call, Counter<u64, AtomicU64>>,
    durations: Mutex<Option<Durations>>,
    in_flight: Gauge<i64, AtomicI64>,
    operations: Mutex<Vec<Operations>>,
}

type Durations = Family<Method, Histogram, fn() -> Histogram>;

/// Operations under way, counted when somebody asks.
#[derive(Debug)]
struct UnderWay(Vec<Operations>);

impl Collector for UnderWay {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let count = self.0.iter().map(Operations::under_way).sum::<usize>();
        let gauge = ConstGauge::new(count as f64);
        let help = "Operations in progress, including those whose callers stopped waiting";
        gauge.encode(encoder.encode_descriptor("csi_operations", help, None, gauge.metric_type())?)
    }
}

impl Rpcs {
    /// Counts these operations as well.
    pub fn watch(&self, operations: &Operations) {
        self.operations.lock().push(operations.clone());
    }

    /// Makes the figures part of a registry. Operations are those that are watched by now.
    pub fn register(&self, registry: &mut Registry) {
        let durations: Durations = Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS));
        registry.register("csi_calls", "RPCs, by method and gRPC code", self.calls.clone());
        let help = "How long RPCs took";
        registry.register_with_unit("csi_duration", help, Unit::Seconds, durations.clone());
        registry.register("csi_calls_in_flight", "RPCs being served", self.in_flight.clone());
        registry.register_collector(Box::new(UnderWay(self.operations.lock().clone())));
        *self.durations.lock() = Some(durations);
    }

    /// Serves one RPC: logs and counts what came of it. `subject` is the volume; nothing else of a request is logged, since
    /// secrets and mount flags are in it.
    ///
    /// # Errors
    /// The work's, as a status.
    pub async fn serve<T>(
        &self,
        method: &'static str,
        subject: &str,
        work: impl Future<Output = Result<T, CsiError>>,
    ) -> Result<Response<T>, Status> {
        let began = Instant::now();
        self.in_flight.inc();
        let in_flight = InFlight(&self.in_flight);
        // See docs/tracing.md.
        let span = tracing::debug_span!(target: "atoll::trace", "csi", method, volume = subject);
        let result = work.instrument(span).await;
        drop(in_flight);
        let seconds = began.elapsed().as_secs_f64();
        let code = result.as_ref().map_or_else(CsiError::code, |_| Code::Ok);
        self.calls.get_or_create(&Call { method, code: code_name(code) }).inc();
        if let Some(durations) = &*self.durations.lock() {
            durations.get_or_create(&Method { method }).observe(seconds);
        }
        match result {
            Ok(response) => {
                tracing::debug!(method, volume = subject, seconds, "call succeeded");
                Ok(Response::new(response))
            }
            Err(error) => {
                tracing::warn!(
                    method, volume = subject, seconds, code = code_name(code), %error,
                    "call failed"
                );
                Err(error.into())
            }
        }
    }
}

/// Counts down also when the caller goes away in the middle.
struct InFlight<'a>(&'a Gauge<i64, AtomicI64>);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// How long a call may wait: until shortly before its caller's deadline (the header `grpc-timeout`), and at most `most`.
#[must_use]
pub fn budget(metadata: &MetadataMap, most: Duration, margin: Duration) -> Duration {
    let named = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
    named.map_or(most, |named| named.saturating_sub(margin.min(named / 4)).min(most))
}

/// A gRPC timeout: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_answers_before_its_caller_gives_up() {
        let most = Duration::from_secs(55);
        let margin = Duration::from_secs(2);
        for (header, seconds) in
            [(None, 55.0), (Some("60S"), 55.0), (Some("10000000u"), 8.0), (Some("1S"), 0.75)]
        {
            let mut metadata = MetadataMap::new();
            if let Some(header) = header {
                metadata.insert("grpc-timeout", header.parse().unwrap());
            }
            assert_eq!(budget(&metadata, most, margin).as_secs_f64(), seconds, "{header:?}");
        }
        for wrong in ["", "S", "10", "10X", "-1S"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn calls_are_counted_by_method_and_code() {
        let rpcs = Rpcs::default();
        let operations = Operations::default();
        rpcs.watch(&operations);
        let mut registry = Registry::with_prefix("atoll");
        rpcs.register(&mut registry);
        let _under_way = operations.begin("v");
        rpcs.serve("Probe", "", async { Ok(()) }).await.unwrap();
        let missing: Result<Response<()>, Status> =
            rpcs.serve("Probe", "", async { Err(CsiError::Missing("x")) }).await;
        assert_eq!(missing.unwrap_err().code(), Code::InvalidArgument);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "atoll_csi_calls_total{method=\"Probe\",code=\"OK\"} 1",
            "atoll_csi_calls_total{method=\"Probe\",code=\"INVALID_ARGUMENT\"} 1",
            "atoll_csi_duration_seconds_count{method=\"Probe\"} 2",
            "atoll_csi_operations 1",
            "atoll_csi_calls_in_flight 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
