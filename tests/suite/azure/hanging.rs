//! With the cloud hanging: every request ends by its deadline, and none leaves anything behind.

use super::{Node, SECRET};
use futures::future::join_all;
use std::fs;
use std::time::{Duration, Instant};
use testkit::PATIENCE;
use testkit::agent::AgentProcess;
use testkit::azure::{Behaviour, Fault};
use tokio::time::sleep;

/// How many descriptors and threads a process has.
fn held(agent: &AgentProcess) -> (usize, usize) {
    let count = |what: &str| {
        let directory = format!("/proc/{}/{what}", agent.pid());
        fs::read_dir(directory).expect("root may look").count()
    };
    (count("fd"), count("task"))
}

#[tokio::test]
async fn a_thousand_requests_to_a_hanging_cloud_end_in_time_and_leave_nothing_behind() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.azure
        .admit(testkit::clouds::azure::VAULT, &client, None);
    let agent = node
        .agent_with(|s| {
            s.set("limits.request_deadline", "2s")
                .set("limits.attest_wait", "1s")
                .set("limits.in_flight_per_pod", 1000)
                .set("limits.connections_per_pod", 1000)
                .set("limits.requests_per_second_per_pod", 10_000)
                .set("backends.azure.timeout", "2s")
        })
        .await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    let before = held(&agent);
    let hanging = node.azure.fault(Fault::everywhere(Behaviour::Hang));
    for round in 0..5 {
        // Each asks for another secret, so that no two share a call.
        let names: Vec<_> = (0..200).map(|n| format!("test/n{round}-{n}")).collect();
        let begun = Instant::now();
        let answers = join_all(names.iter().map(|name| pod.secret(name))).await;
        let took = begun.elapsed();
        for answer in answers {
            let status = answer.expect("an answer").status;
            assert!(matches!(status, 503 | 504), "{status}");
        }
        // Their deadline, and the time that so many processes' worth of work takes on a slow machine.
        assert!(took < Duration::from_secs(40), "it took {took:?}");
    }
    // On a busy machine not each gets as far as the cloud in its time.
    let hung = node.azure.calls_where(|call| !call.succeeded()).len();
    assert!(hung > 100, "{hung} calls have hung");
    drop(hanging);
    let until = Instant::now() + PATIENCE;
    loop {
        let now = held(&agent);
        // The one connection that the first read has left open may have been closed meanwhile.
        if now.0 <= before.0 + 1 && now.1 <= before.1 {
            break;
        }
        assert!(Instant::now() < until, "before {before:?}, now {now:?}");
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
}
