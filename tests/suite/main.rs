//! Black-box tests: real processes ask a real agent over a real socket, between strict fakes.

/// Leaves a test that needs workloads where there can be none.
macro_rules! needs_workloads {
    () => {
        if !$crate::can_run() {
            return;
        }
    };
}

mod admin;
mod attacks;
mod aws;
mod azure;
mod backends;
mod cache;
mod churn;
mod client;
mod csi;
mod disguises;
mod file;
mod gcp;
mod handover;
mod http;
mod hygiene;
mod languages;
mod lifecycle;
mod limits;
mod local;
mod operations;
mod pass;
mod recycled;
mod rights;
mod sidecar;
mod slice;
mod trail;
mod wait;
mod watch;

use std::path::Path;
use std::time::Duration;
use testkit::agent::AgentProcess;
use testkit::sandbox::{Sandbox, SandboxPod, password};
use testkit::until;
use testkit::workload::{Raw, Received, Workload, WorkloadSpec};

/// Whether the workloads' tests can run. If not, that is said once, past the capture of what tests print.
///
/// CI runs as root, where nothing is skipped: a machine that refuses workloads there fails the test instead.
fn can_run() -> bool {
    match testkit::workload::Workload::supported() {
        Ok(()) => true,
        Err(why) if nix::unistd::geteuid().is_root() => panic!("{why}"),
        Err(why) => {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| testkit::skip::say_skipped(why));
            false
        }
    }
}

/// A sandbox with a pod of the namespace `test`, which has a role and a secret of its own.
async fn sandbox_with_a_pod() -> (Sandbox, SandboxPod) {
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    (sandbox, pod)
}

/// Longer than the agent remembers that an exchange was refused, or that a session ended at birth.
const REFUSAL_STANDS: Duration = Duration::from_millis(2200);

/// Why an agent ends, of what it says meanwhile: what it logs besides, as that the machine lets it have few
/// descriptors, is JSON.
fn reasons(stderr: &str) -> Vec<&str> {
    let lines = stderr.lines();
    lines
        .filter(|line| line.starts_with("latchkey-agent: "))
        .collect()
}

/// At most so long on a machine that is quick enough, and on any other so many times what `usual` took there: a bound
/// that is promised, and that a slow machine cannot keep.
fn at_most(promised: Duration, times: u32, usual: Duration) -> Duration {
    promised.max(usual * times)
}

/// Has calls go wrong by `fault`, and asks for a secret until `count`, of such calls, says that one has; each answer
/// until then is a refusal. `fault` returns what keeps it up.
async fn must_meet<T>(
    what: &str,
    (pod, secret): (&SandboxPod, &str),
    count: impl Fn() -> usize,
    fault: impl FnOnce() -> T,
) {
    let before = count();
    let _fault = fault();
    // What is remembered of the one before keeps it from being met for a moment.
    let is_met = async || {
        let answer = pod.secret(secret).await.expect("an answer");
        assert_ne!(answer.status, 200, "{what}");
        count() > before
    };
    until(what, is_met).await;
}

/// The error's code in an answer.
fn code(answer: &testkit::workload::Response) -> String {
    answer.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Whether a pod of the namespace `test` has read its secret.
fn is_own(answer: &testkit::workload::Response) -> bool {
    answer.status == 200 && answer.json()["value"] == password("test")
}

/// Whether who asked is no pod that the agent knows.
fn is_no_workload(answer: &testkit::workload::Response) -> bool {
    answer.status == 403 && code(answer) == "not_attested"
}

/// Which request of the agent's this was the answer to: they are numbered as they are begun.
fn number(answer: &testkit::workload::Response) -> u64 {
    number_in(answer.header("x-request-id").expect("an id"))
}

/// Has the agent say what only a loud one says: otherwise a log without a secret shows nothing.
async fn must_be_loud(agent: &AgentProcess, socket: &Path) {
    let host = Workload::start(WorkloadSpec::host(socket)).await;
    let broken = Raw::new("no request\r\n\r\n");
    let told = host.expect("a process").raw(broken).await;
    told.expect("a connection");
    let line = agent.until_line("\"level\":\"DEBUG\"").await;
    line.expect("it is loud");
}

/// Asks on this connection, and reads nothing: what is asked is on its way when this returns.
async fn ask_on(workload: &Workload, connection: &str, asked: &str) {
    let raw = Raw {
        connection: Some(connection.to_owned()),
        read_millis: 0,
        ..Raw::new(asked)
    };
    workload.raw(raw).await.expect("it is sent");
}

/// The one answer to what was asked on it, and whatever comes within 50 ms after its beginning.
async fn answer_on(workload: &Workload, connection: &str) -> Received {
    let raw = Raw {
        connection: Some(connection.to_owned()),
        answers: Some(1),
        watch_millis: 50,
        ..Raw::new("")
    };
    workload.raw(raw).await.expect("an answer")
}

/// The numbers of the requests that these were the answers to.
fn numbers(received: &Received) -> Vec<u64> {
    let text = String::from_utf8_lossy(&received.bytes);
    let ids = text.lines();
    let ids = ids.filter_map(|line| line.strip_prefix("x-request-id: "));
    ids.map(number_in).collect()
}

/// The number in a request's id.
fn number_in(id: &str) -> u64 {
    let (_, number) = id.split_once('-').expect("a run and a number");
    u64::from_str_radix(number, 16).expect("a number")
}
