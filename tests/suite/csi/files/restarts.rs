//! Files go on being renewed whoever was restarted.

use super::{FILE, PASSWORD, read, refreshing, until_it_holds};
use crate::csi::{Node, settings};
use std::fs;
use testkit::aws::Operation;
use testkit::kube::PodSpec;
use testkit::sandbox::{ACCOUNT, password};
use testkit::until;
use tokio::time::Instant;

#[tokio::test]
async fn files_follow_a_rotation_while_the_mounter_is_away_and_after_it_is_back() {
    needs_workloads!();
    let mut node = Node::refreshing().await;
    let (volume, target) = node.with_files("web", PASSWORD).await;
    let mounts = node.kubelet.mounts();
    node.mounter.kill().await.expect("it runs");
    node.sandbox.aws_secret("test/database-password", "without");
    until_it_holds(&target.join(FILE), "without").await;
    node.mounter = node.kubelet.mounter().await.expect("a mounter");
    node.publish(&volume).await.expect("again");
    node.sandbox.aws_secret("test/database-password", "after");
    until_it_holds(&target.join(FILE), "after").await;
    assert_eq!(node.kubelet.mounts(), mounts);
    node.kubelet.unpublish(&volume).await.expect("it goes");
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn files_outlive_an_agent_that_is_killed_and_the_next_one_renews_them() {
    needs_workloads!();
    let mut node = Node::refreshing().await;
    let (volume, target) = node.with_files("web", PASSWORD).await;
    node.kill_agent().await;
    assert_eq!(read(&target.join(FILE)), password("test"));
    // As if it had been killed in the middle of a set.
    let of_volume = node.kubelet.of_only_volume("p");
    fs::create_dir(of_volume.join("..half")).expect("a directory");
    fs::write(of_volume.join("..half/x"), "x").expect("a file");
    let agent = refreshing(settings(&node.sandbox, &node.kubelet))
        .start()
        .await;
    node.agent = agent.expect("an agent");
    node.agent.until_ready().await.expect("it is ready");
    node.sandbox.aws_secret("test/database-password", "rotated");
    // Its tokens come with the kubelet's next call.
    node.publish(&volume).await.expect("again");
    until_it_holds(&target.join(FILE), "rotated").await;
    assert!(!of_volume.join("..half").exists(), "half a set is left");
    node.sandbox.aws_secret("test/database-password", "again");
    until_it_holds(&target.join(FILE), "again").await;
}

/// As when it is deleted by force while the kubelet is down.
#[tokio::test]
async fn a_pod_that_is_gone_leaves_no_values_in_its_volume_and_no_failures() {
    needs_workloads!();
    let mut node = Node::refreshing().await;
    let (volume, target) = node.with_files("web", PASSWORD).await;
    let (_other, of_other) = node.with_files("other", PASSWORD).await;
    let link = target.join("..data");
    let set = target.join(fs::read_link(&link).expect("a set"));
    node.mounter.kill().await.expect("it runs");
    volume.pod.delete();
    until("no file", async || !set.join(FILE).exists()).await;
    until("no link to it", async || !target.join(FILE).is_symlink()).await;
    assert_eq!(fs::read_dir(&link).expect("a set").count(), 0);
    node.agent
        .until_line("since its pod is gone")
        .await
        .expect("it says so");
    // The other pod's go on.
    node.sandbox.aws_secret("test/database-password", "rotated");
    until_it_holds(&of_other.join(FILE), "rotated").await;
    for outcome in ["unavailable", "denied", "missing", "invalid"] {
        let failures = format!("latchkey_csi_fillings_total{{outcome=\"{outcome}\"}}");
        let counted = node.agent.metric(&failures).await.unwrap_or(0.0);
        assert!(counted == 0.0, "{failures} {counted}");
    }
}

#[tokio::test]
async fn files_of_a_pod_that_was_not_named_for_a_while_are_renewed_once_it_is_published_again() {
    needs_workloads!();
    let node = Node::refreshing().await;
    let (mut volume, target) = node.with_files("web", PASSWORD).await;
    volume.pod.delete_unseen();
    node.sandbox.kube.watch_expire();
    until("no file", async || !target.join(FILE).exists()).await;
    let (named_again, _) = node.object(PodSpec {
        uid: Some(volume.pod.uid().into()),
        ..PodSpec::of("test", "web", ACCOUNT)
    });
    volume.pod = named_again.pod;
    until("its files", async || {
        node.publish(&volume).await.is_ok() && target.join(FILE).exists()
    })
    .await;
    node.sandbox.aws_secret("test/database-password", "rotated");
    until_it_holds(&target.join(FILE), "rotated").await;
}

#[tokio::test]
async fn an_agent_that_takes_over_goes_on_with_the_files_and_the_one_before_leaves_at_once() {
    needs_workloads!();
    let mut node = Node::refreshing().await;
    let (_volume, target) = node.with_files("web", PASSWORD).await;
    let next = node.successor(refreshing).await;
    let began = Instant::now();
    let status = node.agent.stop().await.expect("it ends");
    assert!(status.success(), "{status}");
    // Of the twenty seconds that it may take, it takes those that nobody comes any more.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    node.sandbox.aws_secret("test/database-password", "rotated");
    until_it_holds(&target.join(FILE), "rotated").await;
    next.until_audit(|line| line["volume"] == "latchkey")
        .await
        .expect("by the new one");
}

/// What it has read is older than what the next one may have written.
#[tokio::test]
async fn an_agent_whose_volume_is_anothers_by_the_time_it_has_read_writes_nothing_into_it() {
    needs_workloads!();
    // Longer than it takes the next agent to take over.
    let patient = |settings| refreshing(settings).set("backends.aws.timeout", "10s");
    let node = Node::start_with(patient).await;
    let (_volume, target) = node.with_files("web", PASSWORD).await;
    let (gate, held) = node.sandbox.aws.hold(Operation::GetSecretValue);
    gate.reached(1).await;
    drop(held);
    let _next = node.successor(refreshing).await;
    node.sandbox.aws_secret("test/database-password", "rotated");
    until_it_holds(&target.join(FILE), "rotated").await;
    gate.open();
    let told = node.agent.until_line("another agent's by now").await;
    told.expect("the one before has read, and leaves it at that");
}

/// As after an upgrade to an agent that is stricter: the pod runs, and its socket is not what is wrong.
#[tokio::test]
async fn a_pod_that_runs_keeps_its_socket_though_what_it_asks_for_is_wrong_to_the_next_agent() {
    needs_workloads!();
    let mut node = Node::refreshing().await;
    let (volume, container) = node.asking("web", PASSWORD);
    node.publish(&volume).await.expect("it is published");
    let workload = node.container(&volume, &container).await;
    node.kill_agent().await;
    let record = node.kubelet.of_only_volume("v");
    let mut written: serde_json::Value = serde_json::from_str(&read(&record)).expect("JSON");
    written["files"]["secrets"] = "[{}]".into();
    fs::write(&record, written.to_string()).expect("it is written");
    node.start_agent().await;
    let health = workload.get("/health").await.expect("somebody listens");
    health.must_be_ok();
    node.agent
        .until_line("a volume has no files")
        .await
        .expect("it says why");
}
