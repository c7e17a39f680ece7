//! HTTP/1.1 on the workload socket, as `docs/protocol.md` promises it.

mod answers;
mod framing;
mod names;
mod routes;

use testkit::agent::AgentProcess;
use testkit::sandbox::{Sandbox, SandboxPod};
use testkit::workload::{Raw, Received, Request, Response};

/// An agent with one pod of the namespace `test`, whose role reads `test/*`.
struct Served {
    sandbox: Sandbox,
    agent: AgentProcess,
    pod: SandboxPod,
}

impl Served {
    async fn start() -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.namespace("test");
        let agent = sandbox.agent().await.expect("an agent");
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        Self {
            sandbox,
            agent,
            pod,
        }
    }

    async fn get(&self, path: &str) -> Response {
        self.pod.get(path).await.expect("an answer")
    }

    async fn ask(&self, request: Request) -> Response {
        self.pod.request(request).await.expect("an answer")
    }

    /// What comes back for these bytes, until the agent closes or nothing more has come for `millis`.
    async fn raw(&self, bytes: impl Into<Vec<u8>>, millis: u64) -> Received {
        let raw = Raw {
            read_millis: millis,
            ..Raw::new(bytes)
        };
        self.pod.workload.raw(raw).await.expect("a connection")
    }
}

/// The statuses of the answers on a connection, in order.
fn statuses(received: &Received) -> Vec<u16> {
    let text = String::from_utf8_lossy(&received.bytes);
    let lines = text.split("HTTP/1.").skip(1);
    lines
        .filter_map(|line| line.get(2..5)?.parse().ok())
        .collect()
}
