//! What a pod does to its own socket is no other pod's trouble.

use super::{Node, OWN, reads_own};
use crate::{answer_on, ask_on, number, numbers};
use latchkey_agent::csi::proto::{Empty, NodeInfo};
use std::time::Duration;
use testkit::agent::AgentSettings;
use testkit::kubelet::Connection;
use testkit::workload::{Flood, Flooded, Request, Signal, Workload};
use tokio::time::timeout;

/// By how much a flood may delay half of another pod's connects, in microseconds, beside four times what they take
/// without it. They share the agent's core, and on a busy machine they share that with others; the flood's own backlog,
/// behind which they would be, lasts for a minute and more.
const DELAY: u64 = 1_000_000;

/// By this gRPC's libraries tell that a message is longer than is taken.
const OUT_OF_RANGE: u16 = 11;

/// Fewer connects than a pod's own limit lets in at once.
const QUEUE: usize = 60;

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

fn connects(requests: usize) -> Flood {
    Flood {
        path: "/health".into(),
        connections: 1,
        requests,
        reconnect: true,
        interval_micros: 0,
        expect: None,
    }
}

#[tokio::test]
async fn a_flood_of_connects_on_one_pods_socket_does_not_make_another_pods_connect_wait() {
    needs_workloads!();
    let node = Node::start_with(|settings| settings.set("limits.connections", 64)).await;
    let noisy = node.pod("test", "noisy").await;
    let polite = node.pod("test", "polite").await;
    reads_own(&polite.workload).await;
    let calm = async || -> Flooded {
        let calm = Flood {
            path: OWN.into(),
            interval_micros: 10_000,
            ..connects(50)
        };
        polite.workload.flood(calm).await.expect("it runs")
    };
    let alone = calm().await;
    // All that the pod may have, silent, and all that the node's shared socket may have besides.
    for number in 0..90 {
        let name = format!("c{number}");
        noisy
            .workload
            .connect(&name)
            .await
            .expect("at least queued");
    }
    let flood = async {
        let flood = Flood {
            connections: 8,
            ..connects(200)
        };
        // It ends by itself when it gets no answers for long enough, or it does not matter.
        let _ = timeout(Duration::from_secs(2), noisy.workload.flood(flood)).await;
    };
    let (beside, ()) = tokio::join!(calm(), flood);
    assert_eq!(beside.count(200), 50, "{beside:?}");
    assert!(
        beside.percentile(50) < alone.percentile(50) * 4 + DELAY,
        "{alone:?} {beside:?}"
    );
}

#[tokio::test]
async fn a_connect_has_its_turn_before_those_that_another_pod_has_queued() {
    needs_workloads!();
    let node = Node::start().await;
    let noisy = node.pod("test", "noisy").await;
    let polite = node.pod("test", "polite").await;
    reads_own(&noisy.workload).await;
    let before = number_of_next(&polite.workload).await;
    // While the agent stands still both pods' connects queue, the noisy one's first.
    node.agent.signal(Signal::SIGSTOP).expect("it runs");
    let queue: Vec<_> = (0..QUEUE).map(|number| format!("c{number}")).collect();
    for name in &queue {
        noisy.workload.connect(name).await.expect("there is room");
        ask_on(&noisy.workload, name, HEALTH).await;
    }
    polite
        .workload
        .connect("asks")
        .await
        .expect("there is room");
    ask_on(&polite.workload, "asks", HEALTH).await;
    node.agent.signal(Signal::SIGCONT).expect("it is stopped");
    let number = numbers(&answer_on(&polite.workload, "asks").await)[0];
    for name in &queue {
        assert_eq!(answer_on(&noisy.workload, name).await.statuses(), [200]);
    }
    let first = number - before;
    assert!(
        first < 10,
        "{first} requests of the noisy pod's came before"
    );
}

#[tokio::test]
async fn all_pods_own_sockets_have_a_bound_together_and_each_has_some_for_itself() {
    needs_workloads!();
    let limited = |settings: AgentSettings| {
        settings
            .set("limits.connections", 8)
            .set("limits.connections_per_pod", 8)
    };
    let node = Node::start_with(limited).await;
    let greedy = node.pod("test", "greedy").await;
    let other = node.pod("test", "other").await;
    // Four are its own, and eight are what all have together.
    let mut kept = Vec::new();
    for number in 0..12 {
        kept.push(format!("c{number}"));
        greedy.workload.connect(&kept[number]).await.expect("one");
    }
    for number in 0..4 {
        let name = format!("c{number}");
        other.workload.connect(&name).await.expect("one");
        let asked = other.workload.send_on(&name, Request::get("/health"));
        assert_eq!(asked.await.expect("one of its own").status, 200);
    }
    other.workload.connect("more").await.expect("it is queued");
    let more = other.workload.send_on("more", Request::get("/health"));
    tokio::pin!(more);
    let early = timeout(Duration::from_millis(300), &mut more).await;
    assert!(early.is_err(), "{early:?}");
    for name in &kept[..6] {
        greedy.workload.close(name).await.expect("it is open");
    }
    let answer = timeout(Duration::from_secs(20), more).await;
    assert_eq!(
        answer.expect("there is room").expect("an answer").status,
        200
    );
}

/// The number of the pod's next request.
async fn number_of_next(workload: &Workload) -> u64 {
    number(&workload.get("/health").await.expect("an answer"))
}

#[tokio::test]
async fn the_mounter_serves_so_many_connections_and_the_next_waits_for_its_turn() {
    needs_workloads!();
    let node = Node::start().await;
    let endpoint = node.kubelet.endpoint();
    let mut kept = Vec::new();
    for _ in 0..32 {
        kept.push(Connection::open(&endpoint).await.expect("a connection"));
    }
    let mut more = Connection::open(&endpoint).await.expect("it is queued");
    let asked = more.call::<NodeInfo>("/csi.v1.Node/NodeGetInfo", &Empty {});
    tokio::pin!(asked);
    let early = timeout(Duration::from_millis(500), &mut asked).await;
    assert!(early.is_err(), "{early:?}");
    kept.pop();
    // Before any of the others has come to its age.
    let answer = timeout(Duration::from_secs(5), asked).await;
    let info = answer.expect("it has its turn").expect("an answer");
    assert_eq!(info.node_id, testkit::sandbox::NODE);
}

/// Whoever makes the pod makes the attributes.
#[tokio::test]
async fn a_request_that_is_longer_than_any_right_one_is_not_read() {
    needs_workloads!();
    let node = Node::start().await;
    let (mut volume, _) = node.object_of("test", "web");
    node.publish(&volume).await.expect("as long as it is");
    volume.attributes = vec![("of-the-pod".into(), "x".repeat(200_000))];
    let refused = node.publish(&volume).await.expect_err("it is too long");
    assert_eq!(refused.code, OUT_OF_RANGE, "{}", refused.message);
}
