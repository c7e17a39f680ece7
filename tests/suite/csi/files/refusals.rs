//! What is wrong with a volume's files, and whom it stops: a pod that starts, never one that runs.

use super::{FILE, PASSWORD, read, until_it_holds};
use crate::csi::{
    ALREADY_EXISTS, INVALID_ARGUMENT, NOT_FOUND, Node, PERMISSION_DENIED, UNAVAILABLE, reads_own,
};
use std::fs;
use std::time::Duration;
use testkit::kube::{Pod, PodSpec};
use testkit::kubelet::Status;
use testkit::sandbox::{ACCOUNT, REGION, password};
use testkit::{PATIENCE, until};
use tokio::time::{sleep, timeout};

/// How a new volume with these secrets is refused; nothing may be left of it.
async fn refused(node: &Node, name: &str, secrets: &str) -> Status {
    let before = node.kubelet.mounts();
    let (volume, _) = node.asking(name, secrets);
    let status = node.publish(&volume).await.expect_err("it is refused");
    assert!(!node.target(&volume).exists());
    let left = (node.kubelet.mounts(), node.kubelet.kept());
    assert_eq!(left, (before, Vec::new()), "something is left of it");
    status
}

#[tokio::test]
async fn a_secret_that_is_denied_or_missing_fails_the_mount_and_is_named_with_the_reason() {
    needs_workloads!();
    let node = Node::start().await;
    node.sandbox.aws_secret("test/text", "no JSON");
    node.sandbox.aws_secret("test/json", "{}");
    for (number, (entry, code, reason)) in [
        (
            r#"{"name": "prod/database-password", "file": "other"}"#,
            PERMISSION_DENIED,
            "denied",
        ),
        (r#""test/absent""#, NOT_FOUND, "not_found"),
        (
            r#"{"name": "test/json", "key": "k"}"#,
            NOT_FOUND,
            "key_not_found",
        ),
        (
            r#"{"name": "test/text", "key": "k"}"#,
            INVALID_ARGUMENT,
            "not_json",
        ),
        (
            r#"{"name": "test/json", "backend": "other"}"#,
            INVALID_ARGUMENT,
            "invalid_request",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let secrets = format!(r#"["test/database-password", {entry}]"#);
        let Status {
            code: seen,
            message,
        } = refused(&node, &format!("web-{number}"), &secrets).await;
        assert_eq!(seen, code, "{message}");
        let entry: serde_json::Value = serde_json::from_str(entry).expect("JSON");
        let name = entry["name"].as_str().or(entry.as_str()).expect("a name");
        assert!(
            message.contains(name) && message.contains(reason),
            "{message}"
        );
        assert!(!message.contains(&password("test")), "{message}");
    }
    // What may be absent stops nobody.
    let optional = r#"[
        "test/database-password",
        {"name": "prod/database-password", "file": "other", "optional": true},
        {"name": "test/json", "key": "k", "optional": true}
    ]"#;
    let (volume, container) = node.asking("lenient", optional);
    node.publish(&volume).await.expect("it is published");
    let target = node.target(&volume);
    assert_eq!(read(&target.join(FILE)), password("test"));
    assert!(fs::symlink_metadata(target.join("other")).is_err());
    reads_own(&node.container(&volume, &container).await).await;
}

#[tokio::test]
async fn a_pod_without_a_role_is_told_so() {
    needs_workloads!();
    let node = Node::start().await;
    node.sandbox.namespace("plain", &[]);
    let (mut volume, _) = node.object_of("plain", "web");
    volume.attributes = vec![("secrets".into(), PASSWORD.into())];
    let Status { code, message } = node.publish(&volume).await.expect_err("it is refused");
    assert_eq!(code, PERMISSION_DENIED, "{message}");
    assert!(message.contains("no_role"), "{message}");
}

#[tokio::test]
async fn a_pod_that_exempts_containers_from_its_role_has_no_files_that_they_could_mount() {
    needs_workloads!();
    let node = Node::start().await;
    let (mut volume, _) = node.object(PodSpec {
        annotations: vec![("eks.amazonaws.com/skip-containers".into(), "proxy".into())],
        ..PodSpec::of("test", "exempt", ACCOUNT)
    });
    volume.attributes = vec![("secrets".into(), PASSWORD.into())];
    let Status { code, message } = node.publish(&volume).await.expect_err("it is refused");
    assert_eq!(code, PERMISSION_DENIED, "{message}");
    assert!(message.contains("exempts containers"), "{message}");
}

#[tokio::test]
async fn an_attribute_that_is_wrong_is_an_invalid_argument_that_names_the_key() {
    needs_workloads!();
    let node = Node::start().await;
    for (number, (secrets, named)) in [
        ("- a", "volumeAttributes.secrets is no list"),
        (r#"[{"name": "a", "mode": "0777"}]"#, "secrets[0].mode"),
        (r#"["a", {"name": "b", "file": "../x"}]"#, "secrets[1].file"),
    ]
    .into_iter()
    .enumerate()
    {
        let Status { code, message } = refused(&node, &format!("web-{number}"), secrets).await;
        assert_eq!(code, INVALID_ARGUMENT, "{message}");
        assert!(message.contains(named), "{message}");
    }
    // The same volume with other files is another.
    let (volume, _target) = node.with_files("web", PASSWORD).await;
    let mut other = volume.clone();
    other.attributes = vec![("secrets".into(), "[\"test/other\"]".into())];
    let Status { code, message } = node.publish(&other).await.expect_err("it is another");
    assert_eq!(code, ALREADY_EXISTS, "{message}");
}

#[tokio::test]
async fn files_that_are_too_large_together_are_refused() {
    needs_workloads!();
    let node = Node::start().await;
    let large = "x".repeat(60_000);
    let entries: Vec<_> = (0..18)
        .map(|number| {
            node.sandbox.aws_secret(&format!("test/{number}"), &large);
            format!("\"test/{number}\"")
        })
        .collect();
    let Status { code, message } = refused(&node, "web", &format!("[{}]", entries.join(","))).await;
    assert_eq!(code, INVALID_ARGUMENT, "{message}");
    assert!(message.contains("1080000 bytes"), "{message}");
    node.with_files("smaller", &format!("[{}]", entries[..17].join(",")))
        .await;
}

#[tokio::test]
async fn a_vault_that_is_away_fails_a_new_mount_and_leaves_the_files_of_others_as_they_are() {
    needs_workloads!();
    let node = Node::refreshing().await;
    let (volume, target) = node.with_files("before", PASSWORD).await;
    let file = target.join(FILE);
    node.sandbox.aws.stop_listening().await;
    let (new, _) = node.asking("new", PASSWORD);
    let Status { code, message } = node.publish(&new).await.expect_err("the vault is away");
    assert_eq!(code, UNAVAILABLE, "{message}");
    assert!(message.contains("test/database-password"), "{message}");
    assert!(!node.target(&new).exists());
    // The pod that runs keeps its file, and the kubelet is told why it is not renewed.
    let failed = async || {
        let metric = "latchkey_csi_fillings_total{outcome=\"unavailable\"}";
        node.agent.metric(metric).await.expect("a metric")
    };
    let count = failed().await;
    until("two more tries", async || failed().await >= count + 2.0).await;
    assert_eq!(read(&file), password("test"));
    let Status { code, message } = node.publish(&volume).await.expect_err("the vault is away");
    assert_eq!(code, UNAVAILABLE, "{message}");
    assert_eq!(read(&file), password("test"));
    node.sandbox
        .aws
        .resume_listening()
        .await
        .expect("it is back");
    node.sandbox.aws_secret("test/database-password", "rotated");
    until_it_holds(&file, "rotated").await;
    node.publish(&volume).await.expect("all is well again");
    node.publish(&new).await.expect("now");
}

#[tokio::test]
async fn a_secret_that_a_running_pod_may_have_no_more_changes_nothing_in_it_and_the_kubelet_is_told()
 {
    needs_workloads!();
    let node = Node::refreshing().await;
    let (volume, target) = node.with_files("web", PASSWORD).await;
    node.sandbox
        .aws
        .delete_secret(REGION, "test/database-password");
    let told = async {
        loop {
            match node.publish(&volume).await {
                Ok(()) => sleep(Duration::from_millis(100)).await,
                Err(status) => break status,
            }
        }
    };
    let told = timeout(PATIENCE, told).await.expect("the kubelet is told");
    // Not as final: the pod runs, and what it has stays.
    assert_eq!(told.code, UNAVAILABLE, "{told}");
    assert!(
        told.message.contains("test/database-password") && told.message.contains("not_found"),
        "{told}"
    );
    assert_eq!(read(&target.join(FILE)), password("test"));
}

/// A kubelet that was restarted mounts a pod's volumes anew, and unmounts none that it has not mounted.
#[tokio::test]
async fn a_pod_at_its_end_keeps_its_files_and_the_kubelet_that_mounts_them_anew_can_unmount_them() {
    needs_workloads!();
    let node = Node::refreshing().await;
    for (number, end) in [
        |pod: &Pod| pod.terminate(-60),
        |pod: &Pod| pod.set_phase("Succeeded"),
    ]
    .into_iter()
    .enumerate()
    {
        let (volume, target) = node.with_files(&format!("web-{number}"), PASSWORD).await;
        end(&volume.pod);
        let failed = async || {
            let metric = "latchkey_csi_fillings_total{outcome=\"denied\"}";
            node.agent.metric(metric).await.expect("a metric")
        };
        let count = failed().await;
        until("a try that is refused", async || failed().await > count).await;
        node.publish(&volume).await.expect("it is published");
        assert_eq!(read(&target.join(FILE)), password("test"));
        node.kubelet.unpublish(&volume).await.expect("it goes");
        volume.pod.delete();
    }
    // One that never had them gets none.
    let (volume, _) = node.asking("late", PASSWORD);
    volume.pod.terminate(-60);
    let _after = node.asking("after", PASSWORD);
    node.until_known(2.0).await;
    let Status { code, message } = node.publish(&volume).await.expect_err("it is refused");
    assert_eq!(code, PERMISSION_DENIED, "{message}");
}

/// Something is where the file's link should be, so that each refresh fails once it has put a new set in place.
#[tokio::test]
async fn a_file_that_cannot_be_put_in_place_is_named_and_no_sets_pile_up() {
    needs_workloads!();
    let node = Node::refreshing().await;
    node.sandbox.aws_secret("test/late", "1");
    let secrets = r#"["test/late", {"name": "test/absent", "optional": true}]"#;
    let (_volume, target) = node.with_files("web", secrets).await;
    let of_volume = node.kubelet.of_only_volume("p");
    fs::create_dir_all(of_volume.join("absent/x")).expect("a directory");
    node.sandbox.aws_secret("test/absent", "here");
    for value in ["2", "3", "4"] {
        node.sandbox.aws_secret("test/late", value);
        until_it_holds(&target.join("late"), value).await;
    }
    let told = node.agent.until_line("cannot be written").await;
    let told = told.expect("it says so");
    assert!(told.contains("absent"), "{told}");
    let sets = || {
        let entries = fs::read_dir(&of_volume).expect("it is there").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("..")).count()
    };
    // The link to the current set, and that set.
    until("no set but the current one", async || sets() == 2).await;
}
