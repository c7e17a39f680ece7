//! The pod's tokens: from the kubelet by way of the mounter into the pod's entry, and nowhere else.

use super::control::control;
use super::{Node, OWN, reads_own};
use crate::hygiene::copies_in_memory;
use crate::{code, must_be_loud};
use latchkey_agent::csi::proto::Empty;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use testkit::kubelet::{Connection, Status, TOKENS};
use testkit::workload::{Raw, Workload, WorkloadSpec};
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn no_token_is_in_the_mounters_memory_a_minute_later_nor_ever_in_a_log_or_file() {
    needs_workloads!();
    let node = Node::start_with(|settings| settings.set("log.level", "trace")).await;
    let (volume, container) = node.object_of("test", "web");
    let request = node
        .kubelet
        .request(&node.sandbox.kube, &volume)
        .expect("a request");
    let tokens: serde_json::Value =
        serde_json::from_str(&request.volume_context[TOKENS]).expect("JSON");
    let token = tokens["sts.amazonaws.com"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    // This kubelet does not close its connection, whose buffers the token went through.
    let mut kept = Connection::open(&node.kubelet.endpoint())
        .await
        .expect("a connection");
    let path = "/csi.v1.Node/NodePublishVolume";
    kept.call::<Empty>(path, &request)
        .await
        .expect("it is published");
    let workload = node.container(&volume, &container).await;
    reads_own(&workload).await;
    // The signature alone would do for whoever has the rest.
    let canary = token.rsplit('.').next().expect("a signature").to_owned();
    assert!(
        copies_in_memory(node.agent.pid(), &canary) > 0,
        "the search finds nothing at all"
    );
    let deadline = Instant::now() + Duration::from_secs(60);
    while copies_in_memory(node.mounter.pid(), &canary) > 0 {
        assert!(Instant::now() < deadline, "the token is still there");
        sleep(Duration::from_millis(500)).await;
    }
    must_be_loud(&node.agent, &node.sandbox.socket()).await;
    for line in node.mounter.stderr().into_iter().chain(node.agent.stderr()) {
        assert!(!line.contains(&canary), "{line}");
    }
    let kept_on_disk = std::process::Command::new("grep")
        .args(["-rls", &canary])
        .arg(node.kubelet.root())
        .arg(node.sandbox.directory())
        .output()
        .expect("grep");
    assert_eq!(String::from_utf8_lossy(&kept_on_disk.stdout), "");
}

/// As after a rollback, or the other way round.
#[tokio::test]
async fn a_pod_goes_on_getting_tokens_if_the_mounter_no_longer_knows_an_attribute_of_its_volume() {
    needs_workloads!();
    let mut node = Node::start().await;
    let mut pod = node.pod("test", "web").await;
    pod.volume.attributes = vec![("later".into(), "x".into())];
    node.kill_agent().await;
    node.start_agent().await;
    node.publish(&pod.volume).await.expect("it is mounted");
    reads_own(&pod.workload).await;
    let said = "keeps the attributes that it was published with";
    node.mounter.until_line(said).await.expect("it says so");
    let (mut other, _) = node.object_of("test", "other");
    other.attributes = pod.volume.attributes;
    let refused = node.publish(&other).await.expect_err("it is new");
    assert!(refused.message.contains("\"later\""), "{}", refused.message);
}

#[tokio::test]
async fn tokens_come_as_secrets_where_the_cluster_can_and_each_call_brings_newer_ones() {
    needs_workloads!();
    let node = Node::start().await;
    let (mut volume, container) = node.object_of("test", "web");
    volume.tokens_in_secrets = true;
    // One that has all but ended.
    volume.audiences = vec![("sts.amazonaws.com".into(), 5)];
    node.publish(&volume).await.expect("it is published");
    let workload = node.container(&volume, &container).await;
    let answer = workload.get(OWN).await.expect("an answer");
    assert_eq!(
        (answer.status, &*code(&answer)),
        (503, "unavailable"),
        "{}",
        answer.text()
    );
    assert!(answer.text().contains("kubelet"), "{}", answer.text());
    volume.audiences = vec![("sts.amazonaws.com".into(), 600)];
    node.publish(&volume).await.expect("again");
    reads_own(&workload).await;
}

/// As on a node whose clock is ahead: the kubelet brings newer ones, and all have ended.
#[tokio::test]
async fn tokens_that_have_expired_when_they_come_fail_the_mount_and_the_clocks_are_named() {
    needs_workloads!();
    let node = Node::start().await;
    let (mut volume, _) = node.object_of("test", "web");
    volume.audiences = vec![("sts.amazonaws.com".into(), -30)];
    let status = node.publish(&volume).await.expect_err("it is refused");
    assert_eq!(status.code, 14, "{status}");
    assert!(status.message.contains("clocks"), "{status}");
    volume.audiences = vec![("sts.amazonaws.com".into(), 600)];
    node.publish(&volume)
        .await
        .expect("the clock is right again");
}

#[tokio::test]
async fn an_audience_that_the_kubelet_does_not_hand_over_is_named() {
    needs_workloads!();
    let node = Node::start().await;
    let (mut volume, container) = node.object_of("test", "web");
    volume.audiences = vec![("vault".into(), 600)];
    node.publish(&volume).await.expect("it is published");
    let workload = node.container(&volume, &container).await;
    let answer = workload.get(OWN).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    assert!(answer.text().contains("tokenRequests"), "{}", answer.text());
}

#[tokio::test]
async fn a_token_of_another_account_or_a_pod_that_is_another_is_refused() {
    needs_workloads!();
    let node = Node::start().await;
    let (volume, _) = node.object_of("test", "web");
    let (other, _) = node.object_of("prod", "web");
    let right = node
        .kubelet
        .request(&node.sandbox.kube, &volume)
        .expect("a request");
    let others = node
        .kubelet
        .request(&node.sandbox.kube, &other)
        .expect("a request");
    let mut with_foreign_token = right.clone();
    let foreign = others.volume_context[TOKENS].clone();
    with_foreign_token
        .volume_context
        .insert(TOKENS.into(), foreign);
    let mut as_another_account = right.clone();
    let key = "csi.storage.k8s.io/serviceAccount.name";
    as_another_account
        .volume_context
        .insert(key.into(), "default".into());
    // Nor without a token, by which it would be seen.
    let mut without = as_another_account.clone();
    without.volume_context.remove(TOKENS);
    let mut under_another_name = right.clone();
    under_another_name.volume_context.remove(TOKENS);
    let key = "csi.storage.k8s.io/pod.name";
    under_another_name
        .volume_context
        .insert(key.into(), "another".into());
    node.until_known(2.0).await;
    let otherwise = "otherwise than the kubelet";
    for (request, why) in [
        (without, otherwise),
        (under_another_name, otherwise),
        (as_another_account, otherwise),
        (with_foreign_token, "another pod's or service account's"),
    ] {
        let Status { code, message } = node.kubelet.send(&request).await.expect_err("refused");
        assert_eq!(code, 7, "{message}");
        assert!(message.contains(why), "{message}");
        assert_eq!(
            node.kubelet.kept(),
            Vec::<String>::new(),
            "something is left of it"
        );
    }
    node.kubelet.send(&right).await.expect("this one is right");
}

#[tokio::test]
async fn tokens_go_with_the_last_of_a_pods_volumes_and_not_before() {
    needs_workloads!();
    let node = Node::start().await;
    let two_volumes = async |name: &str| {
        let (volume, _) = node.object_of("test", name);
        let mut other = volume.clone();
        other.name = "other".into();
        for volume in [&volume, &other] {
            node.publish(volume).await.expect("it is published");
        }
        [volume, other]
    };
    let keeps_one = two_volumes("keeps-one").await;
    let keeps_none = two_volumes("keeps-none").await;
    for volume in [&keeps_one[0], &keeps_none[0], &keeps_none[1]] {
        node.kubelet.unpublish(volume).await.expect("it goes");
    }
    reads_own(&node.on_shared(&keeps_one[1]).await).await;
    let answer = node.on_shared(&keeps_none[0]).await.get(OWN).await;
    let answer = answer.expect("an answer");
    answer.must_be_refused(403, "denied");
}

#[tokio::test]
async fn the_tokens_of_a_volume_in_which_the_agent_cannot_listen_are_not_kept() {
    needs_workloads!();
    let mut node = Node::start().await;
    let (volume, _) = node.object_of("test", "web");
    node.publish(&volume).await.expect("it is published");
    node.kill_agent().await;
    // Whoever is in its group could put another socket there.
    let directory = node.kubelet.of_only_volume("p");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o775)).expect("it is ours");
    node.start_agent().await;
    let Status { code, message } = node.publish(&volume).await.expect_err("it cannot");
    assert_eq!(code, 14, "{message}");
    assert!(message.contains("cannot listen"), "{message}");
    let answer = node.on_shared(&volume).await.get(OWN).await;
    answer.expect("an answer").must_be_refused(403, "denied");
}

/// They would be kept for a volume with which they never go.
#[tokio::test]
async fn no_token_is_taken_for_a_volume_that_has_no_record() {
    needs_workloads!();
    let node = Node::start().await;
    let (volume, _) = node.object_of("test", "web");
    let request = node.kubelet.request(&node.sandbox.kube, &volume);
    let request = request.expect("a request");
    let pod = &volume.pod;
    let ask = serde_json::json!({"publish": {
        "id": request.volume_id,
        "target": request.target_path,
        "pod": {
            "uid": pod.uid(),
            "namespace": pod.namespace(),
            "name": pod.name(),
            "service_account": volume.account,
        },
    }});
    let text = ask_the_agent(&node, &ask, &request.volume_context[TOKENS]).await;
    assert!(text.contains("the volume's record is gone"), "{text}");
    let answer = node.on_shared(&volume).await.get(OWN).await;
    let answer = answer.expect("an answer");
    answer.must_be_refused(403, "denied");
}

/// Asks as the mounter does, who here is in no pod, as the agent is.
async fn ask_the_agent(node: &Node, ask: &serde_json::Value, tokens: &str) -> String {
    let mut bytes = Vec::new();
    for frame in [&*ask.to_string(), tokens] {
        let length = u32::try_from(frame.len()).expect("short");
        bytes.extend(length.to_be_bytes());
        bytes.extend(frame.as_bytes());
    }
    let asker = Workload::start(WorkloadSpec::host(&control(&node.kubelet))).await;
    let asker = asker.expect("a process");
    let received = asker.raw(Raw::new(bytes)).await.expect("an answer");
    String::from_utf8_lossy(&received.bytes).into_owned()
}
