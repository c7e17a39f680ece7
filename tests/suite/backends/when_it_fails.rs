//! What a backend's failures become: the right code, in time, with nothing of anybody in it.

use super::{Backend, FOREIGN, Forgotten, Node, OWN, Trouble};
use crate::code;
use futures::future::join_all;
use latchkey_client::protocol::words::CANNOT_FETCH_KEYS;
use std::time::{Duration, Instant};
use testkit::agent::AgentSettings;
use testkit::clouds::ECHOED;
use testkit::sandbox::CANARY;
use testkit::workload::{Flood, Response};
use testkit::{PATIENCE, until};
use tokio::time::sleep;

/// By how much an answer may be late.
const SLACK: Duration = Duration::from_secs(2);

/// How long a request and one call of it may take: little, so that the test takes little, and still more than an answer
/// takes that comes at all, on a machine that is slow and busy. Several programs are not so quick as a cloud.
fn deadline_and_timeout(backend: &Backend) -> (Duration, Duration) {
    let (deadline, timeout) = if backend.name == "pass" {
        (20, 6)
    } else {
        (6, 1)
    };
    (Duration::from_secs(deadline), Duration::from_secs(timeout))
}

/// Leaves each backend little time.
fn quick(settings: AgentSettings, backend: &Backend) -> AgentSettings {
    let (deadline, timeout) = deadline_and_timeout(backend);
    let seconds = |time: Duration| format!("{}s", time.as_secs());
    settings
        .set("limits.request_deadline", seconds(deadline))
        .set("limits.attest_wait", "1s")
        .set(
            &format!("backends.{}.timeout", backend.name),
            seconds(timeout),
        )
}

async fn quick_node(backend: &Backend) -> Option<Node> {
    let node = backend
        .node_with(|settings| quick(settings, backend))
        .await?;
    until_given(&node).await;
    Some(node)
}

/// Asks until the secret comes: what a backend sets up at first may take longer than it is left.
async fn until_given(node: &Node) {
    let begun = Instant::now();
    loop {
        let answer = node.ask(OWN).await;
        if answer.status == 200 {
            return;
        }
        let waited = begun.elapsed();
        assert!(waited < PATIENCE, "{}", answer.text());
    }
}

/// An answer that cannot be had now, in time, and that gives nothing away.
async fn unavailable(backend: &Backend, node: &Node, what: &str) -> Response {
    let begun = Instant::now();
    let answer = node.ask(OWN).await;
    let text = answer.text().to_owned();
    assert_eq!(
        (answer.status, &*code(&answer)),
        (503, "unavailable"),
        "{what}: {text}"
    );
    assert!(answer.header("retry-after").is_some(), "{what}");
    assert!(
        begun.elapsed() < deadline_and_timeout(backend).0 + SLACK,
        "{what}: {:?}",
        begun.elapsed()
    );
    assert!(!text.contains(CANARY), "{what}: {text}");
    answer
}

async fn troubled(backend: &Backend, row: &str, trouble: Trouble) {
    let Some(node) = quick_node(backend).await else {
        return;
    };
    let fault = node.trouble(trouble);
    unavailable(backend, &node, row).await;
    drop(fault);
    assert_eq!(node.ask(OWN).await.status, 200, "{row} is over");
    let said = node.agent.stderr().join("\n");
    assert!(!said.contains(CANARY), "{row}: {said}");
}

pub(super) async fn throttled(backend: &Backend) {
    let Some(node) = quick_node(backend).await else {
        return;
    };
    let fault = node.trouble(Trouble::Throttle(7));
    let answer = node.refused(OWN, 429, "throttled").await;
    assert_eq!(answer.header("retry-after"), Some("7"));
    drop(fault);
    assert_eq!(node.ask(OWN).await.status, 200);
}

pub(super) async fn slow(backend: &Backend) {
    troubled(backend, "slow", Trouble::Hang).await;
}

pub(super) async fn garbage(backend: &Backend) {
    troubled(backend, "garbage", Trouble::Garbage).await;
}

pub(super) async fn misdirected(backend: &Backend) {
    troubled(backend, "misdirected", Trouble::Misdirect).await;
}

pub(super) async fn truncated(backend: &Backend) {
    troubled(backend, "truncated", Trouble::Truncated).await;
}

pub(super) async fn cut(backend: &Backend) {
    troubled(backend, "cut", Trouble::Cut).await;
}

pub(super) async fn endless(backend: &Backend) {
    let Some(node) = quick_node(backend).await else {
        return;
    };
    let before = peak(&node);
    let fault = node.trouble(Trouble::Endless);
    for _ in 0..3 {
        unavailable(backend, &node, "endless").await;
    }
    drop(fault);
    assert_eq!(node.ask(OWN).await.status, 200);
    let grown = peak(&node) - before;
    assert!(grown < 48 << 10, "by {grown} KiB");
}

/// The most memory that the agent had, in KiB.
fn peak(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.agent.pid()));
    let status = status.expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
    peak.and_then(|peak| peak.parse().ok()).expect("a number")
}

pub(super) async fn forgotten(backend: &Backend) {
    dead_connections(backend, Forgotten::Silent).await;
}

pub(super) async fn broken(backend: &Backend) {
    dead_connections(backend, Forgotten::Broken).await;
}

/// Connections die that are open, and no read notices.
async fn dead_connections(backend: &Backend, how: Forgotten) {
    /// Different secrets, as equal reads of one pod share a call.
    const NAMES: usize = 8;

    let Some(node) = backend
        .node_with(|settings| settings.set(&format!("backends.{}.timeout", backend.name), "1500ms"))
        .await
    else {
        return;
    };
    until_given(&node).await;
    // Read at once and slowly, each leaves an open connection behind.
    let names: Vec<_> = (0..NAMES).map(|number| format!("test/{number}")).collect();
    let slow = node.trouble(Trouble::Slow);
    join_all(names.iter().map(|name| node.ask(name))).await;
    drop(slow);
    node.cloud.forget_connections(how);
    for _ in 0..NAMES {
        assert_eq!(node.ask(OWN).await.status, 200);
    }
}

pub(super) async fn unreachable(backend: &Backend) {
    let Some(node) = quick_node(backend).await else {
        return;
    };
    node.cloud.reachable(false).await.expect("it stops");
    unavailable(backend, &node, "unreachable").await;
    // A pod that has no session yet is told the same.
    let prod = node.sandbox.pod("prod", "web").await.expect("a pod");
    let answer = prod
        .secret("prod/database-password")
        .await
        .expect("an answer");
    assert_eq!(
        (answer.status, &*code(&answer)),
        (503, "unavailable"),
        "{}",
        answer.text()
    );
    let (status, _) = node.agent.admin("/readyz").await.expect("an answer");
    assert_eq!(
        status, 200,
        "a backend that is away is no reason to take the agent away"
    );
    node.cloud.reachable(true).await.expect("it resumes");
    assert_eq!(node.ask(OWN).await.status, 200);
}

pub(super) async fn silent_issuer(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    assert_eq!(node.ask(OWN).await.status, 200);
    let fault = node.trouble(Trouble::SilentIssuer);
    // It says nothing about who asks: the session at hand stays, and who has none may come again.
    assert_eq!(node.ask(OWN).await.status, 200);
    let prod = node.sandbox.pod("prod", "web").await.expect("a pod");
    let ask = async || prod.secret(FOREIGN).await.expect("an answer");
    let answer = ask().await;
    let text = answer.text();
    assert_eq!(
        (answer.status, &*code(&answer)),
        (503, "unavailable"),
        "{text}"
    );
    assert!(
        text.contains(CANNOT_FETCH_KEYS) && text.contains("issuer"),
        "{text}"
    );
    drop(fault);
    assert_eq!(ask().await.status, 200);
}

/// What a cloud repeats of a credential does not go into the log.
pub(super) async fn nothing_echoed(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    assert_eq!(node.ask(OWN).await.status, 200);
    let _echo = node.trouble(Trouble::Echo);
    // The session's credential, and then the token of a pod that has no session.
    node.refused(OWN, 403, "denied").await;
    let prod = node.sandbox.pod("prod", "web").await.expect("a pod");
    assert_eq!(prod.secret(FOREIGN).await.expect("an answer").status, 403);
    let refusals = || {
        let said = node.agent.stderr();
        let refusals = said
            .into_iter()
            .filter(|line| line.contains("request refused"));
        refusals.collect::<Vec<_>>()
    };
    until("both are logged", async || refusals().len() == 2).await;
    for line in refusals() {
        assert!(!line.contains(ECHOED), "{line}");
    }
}

pub(super) async fn expired_session(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    assert_eq!(node.ask(OWN).await.status, 200);
    assert!(node.cloud.expire_sessions(), "there is a session to end");
    let answer = node.ask(OWN).await;
    answer.must_be_ok();
}

/// A token service's answer can be taken for none but the one that was asked for.
pub(super) async fn exchanged_alone(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    until_given(&node).await;
    let opened = node.cloud.opened();
    assert_eq!(node.ask(OWN).await.status, 200);
    assert_eq!(node.cloud.opened(), opened, "reads share a connection");
    assert!(node.cloud.expire_sessions());
    assert_eq!(node.ask(OWN).await.status, 200);
    assert!(node.cloud.opened() > opened, "the exchange has its own");
}

pub(super) async fn leaves_nothing_behind(backend: &Backend) {
    /// Different secrets, as equal reads of one pod share a call.
    const NAMES: usize = 25;
    /// For each name.
    const READS: usize = 10;

    let Some(node) = backend
        .node_with(|settings| {
            quick(settings, backend).set(&format!("backends.{}.timeout", backend.name), "500ms")
        })
        .await
    else {
        return;
    };
    until_given(&node).await;
    let before = Held::by(&node).await;
    let fault = node.trouble(Trouble::Hang);
    let floods = (0..NAMES).map(|number| {
        node.pod.workload.flood(Flood {
            path: format!("/v1/secrets/test/hanging-{number}"),
            connections: 1,
            requests: READS,
            reconnect: false,
            interval_micros: 0,
            expect: None,
        })
    });
    for flooded in join_all(floods).await {
        let flooded = flooded.expect("the pod lives");
        assert_eq!(flooded.statuses.get(&503), Some(&READS), "{flooded:?}");
        let slowest = flooded.micros.last().copied().map(Duration::from_micros);
        assert!(
            slowest.is_some_and(|took| took < deadline_and_timeout(backend).0 + SLACK),
            "{slowest:?}"
        );
    }
    drop(fault);
    // What is left goes within the time for which threads and connections are kept for the next one.
    let begun = Instant::now();
    loop {
        let after = Held::by(&node).await;
        if after.is_no_more_than(&before) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{before:?} and then {after:?}");
        sleep(Duration::from_millis(200)).await;
    }
    until_given(&node).await;
}

/// What an agent holds of the machine.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    tasks: f64,
}

impl Held {
    async fn by(node: &Node) -> Self {
        let process = format!("/proc/{}", node.agent.pid());
        let count = |what: &str| {
            std::fs::read_dir(format!("{process}/{what}"))
                .expect("it runs")
                .count()
        };
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            tasks: node.agent.metric("latchkey_tasks").await.expect("metrics"),
        }
    }

    /// The admin connection that is asked by, and one to the backend, may be there or not.
    fn is_no_more_than(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors + 2
            && self.threads <= before.threads
            && self.tasks <= before.tasks + 2.0
    }
}
