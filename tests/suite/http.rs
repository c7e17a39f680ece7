//! HTTP/1.1 on the workload socket, as `docs/protocol.md` promises it.

mod answers;
mod batch;
mod framing;
mod names;
mod routes;

use testkit::agent::{AgentProcess, AgentSettings};
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
        Self::start_with(|settings| settings).await
    }

    /// By an agent that gives a request nearly as long as the pod waits, for slow machines.
    async fn patient() -> Self {
        Self::start_with(|settings| settings.set("limits.request_deadline", "40s")).await
    }

    async fn start_with(change: impl FnOnce(AgentSettings) -> AgentSettings) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        let agent = sandbox.agent_with(change).await.expect("an agent");
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

    /// What comes back for these bytes until the agent closes.
    async fn raw(&self, bytes: impl Into<Vec<u8>>) -> Received {
        self.received(Raw::new(bytes)).await
    }

    /// So many answers to these bytes, and what comes within the next 150 ms: nothing, where the connection stays.
    async fn kept(&self, bytes: impl Into<Vec<u8>>, answers: usize) -> Received {
        let raw = Raw {
            answers: Some(answers),
            watch_millis: 150,
            ..Raw::new(bytes)
        };
        self.received(raw).await
    }

    async fn received(&self, raw: Raw) -> Received {
        self.pod.workload.raw(raw).await.expect("a connection")
    }
}
