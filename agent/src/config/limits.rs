//! The section `limits`.

use std::time::Duration;

use super::{reader::Reader, value};

/// What one pod, and all pods together, may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Connections on the shared socket, and as many again on the pods' own sockets.
    pub connections: usize,
    /// Connections of one pod.
    pub connections_per_pod: usize,
    /// Requests of one pod that are being answered at the same time.
    pub in_flight_per_pod: usize,
    /// The sustained rate of one pod; bursts may be twice that.
    pub requests_per_second_per_pod: u32,
    /// Connections that are still being attested, of all pods.
    pub unattested: usize,
    /// How long a caller waits for its pod to become known.
    pub attest_wait: Duration,
    /// The total time for a request.
    pub request_deadline: Duration,
    /// How long a stopping agent keeps working on its requests.
    pub drain: Duration,
}

impl Limits {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let default = Self::default();
        Self {
            connections: reader.read(
                "limits.connections",
                value::count(1..=65_536),
                default.connections,
            ),
            connections_per_pod: reader.read(
                "limits.connections_per_pod",
                value::count(1..=65_536),
                default.connections_per_pod,
            ),
            in_flight_per_pod: reader.read(
                "limits.in_flight_per_pod",
                value::count(1..=65_536),
                default.in_flight_per_pod,
            ),
            requests_per_second_per_pod: reader.read(
                "limits.requests_per_second_per_pod",
                value::count(1..=1_000_000),
                default.requests_per_second_per_pod,
            ),
            unattested: reader.read(
                "limits.unattested",
                value::count(1..=65_536),
                default.unattested,
            ),
            attest_wait: reader.read(
                "limits.attest_wait",
                value::duration(Duration::ZERO..=Duration::from_secs(60)),
                default.attest_wait,
            ),
            request_deadline: reader.read(
                "limits.request_deadline",
                value::duration(Duration::from_millis(100)..=Duration::from_secs(300)),
                default.request_deadline,
            ),
            drain: reader.read(
                "limits.drain",
                value::duration(Duration::ZERO..=Duration::from_secs(600)),
                default.drain,
            ),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_pod: 64,
            in_flight_per_pod: 32,
            requests_per_second_per_pod: 500,
            unattested: 128,
            attest_wait: Duration::from_secs(5),
            request_deadline: Duration::from_secs(10),
            drain: Duration::from_secs(20),
        }
    }
}
