//! CSI's own table of errors, row by row, over the driver's socket (csi-spec, "Error Scheme", and the errors of the Node
//! service). What is wrong in a single field is tried beside the code that reads it.
//!
//! | row | where it is tried |
//! | --- | --- |
//! | missing, invalid or unsupported field, 3 | here, in csi/publish.rs and in volumes/asked.rs; more than a pod may have: files/room.rs |
//! | volume does not exist, 5 | none exists before it is published; a secret that does not: files/refusals.rs. Unpublish succeeds: here |
//! | published already, and incompatible, 6 | here, and files/refusals.rs |
//! | permission denied, 7 | tokens.rs, files/refusals.rs |
//! | exceeds capabilities, or published at another path, 9 | here |
//! | staging path not set, 9 | nothing is ever staged |
//! | operation pending, 10 | here |
//! | call not implemented, 12 | here |
//! | not healthy, try again, 14 | here, restarts.rs, files/refusals.rs |
//! | not authenticated, 16 | nobody but root gets as far as a call: here |

use super::{
    ABORTED, ALREADY_EXISTS, FAILED_PRECONDITION, INVALID_ARGUMENT, Node, UNAVAILABLE,
    UNIMPLEMENTED,
};
use latchkey_agent::csi::proto::{
    AccessType, Empty, NodeCapabilities, NodeInfo, NodeUnpublishVolumeRequest, PluginName,
};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use testkit::kubelet::{Status, call};

/// `NodeServiceCapability.RPC.Type`.
const VOLUME_MOUNT_GROUP: i32 = 6;

#[tokio::test]
async fn identity_and_node_services_say_what_they_are_and_what_they_are_not() {
    needs_workloads!();
    let node = Node::start().await;
    let endpoint = node.kubelet.endpoint();
    let name: PluginName = call(&endpoint, "/csi.v1.Identity/GetPluginInfo", &Empty {})
        .await
        .expect("it answers");
    assert_eq!(
        (&*name.name, &*name.vendor_version),
        ("csi.latchkey.dev", env!("CARGO_PKG_VERSION"))
    );
    // That it is ready, and no more capabilities than the least.
    for path in ["Probe", "GetPluginCapabilities"] {
        let path = format!("/csi.v1.Identity/{path}");
        call::<Empty>(&endpoint, &path, &Empty {})
            .await
            .expect("it answers");
    }
    let info: NodeInfo = call(&endpoint, "/csi.v1.Node/NodeGetInfo", &Empty {})
        .await
        .expect("it answers");
    assert_eq!(info.node_id, testkit::sandbox::NODE);
    let path = "/csi.v1.Node/NodeGetCapabilities";
    let can: NodeCapabilities = call(&endpoint, path, &Empty {}).await.expect("it answers");
    let can: Vec<_> = can
        .capabilities
        .iter()
        .map(|one| one.rpc.expect("an RPC").kind)
        .collect();
    assert_eq!(can, [VOLUME_MOUNT_GROUP]);
    for path in [
        "/csi.v1.Node/NodeStageVolume",
        "/csi.v1.Node/NodeUnstageVolume",
        "/csi.v1.Node/NodeGetVolumeStats",
        "/csi.v1.Node/NodeExpandVolume",
        "/csi.v1.Controller/CreateVolume",
    ] {
        let Status { code, .. } = call::<Empty>(&endpoint, path, &Empty {})
            .await
            .expect_err(path);
        assert_eq!(code, UNIMPLEMENTED, "{path}");
    }
}

#[tokio::test]
async fn nobody_but_root_can_call_the_driver_even_where_the_modes_would_let_him() {
    needs_workloads!();
    let node = Node::start().await;
    for path in [node.kubelet.root(), &node.kubelet.directory()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let endpoint = node.kubelet.endpoint();
    let calls = |uid: u32| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--http2-prior-knowledge", "--max-time", "5"])
            .args(["--data", "", "--header", "content-type: application/grpc"])
            .arg("--unix-socket")
            .arg(&endpoint)
            .arg("http://localhost/csi.v1.Node/Nothing")
            .uid(uid);
        curl.status().expect("curl").success()
    };
    assert!(calls(0), "root cannot");
    assert!(!calls(10_001), "the mode lets him");
    fs::set_permissions(&endpoint, fs::Permissions::from_mode(0o666)).expect("a mode");
    assert!(!calls(10_001), "the driver answers him");
    let told = node
        .mounter
        .until_line("somebody who is not root connected");
    told.await.expect("it is told");
}

#[tokio::test]
async fn each_row_of_the_specifications_table_for_publish_has_its_code() {
    needs_workloads!();
    let node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let kube = &node.sandbox.kube;
    let right = node.kubelet.request(kube, &pod.volume).expect("a request");
    let code = async |request| match node.kubelet.send(request).await {
        Ok(()) => 0,
        Err(Status { code, .. }) => code,
    };
    // Published, and published again as the same: nothing happens.
    assert_eq!(code(&right).await, 0);
    // Published, and incompatible.
    let mut other = right.clone();
    let name = "csi.storage.k8s.io/pod.name";
    other.volume_context.insert(name.into(), "another".into());
    assert_eq!(code(&other).await, ALREADY_EXISTS);
    // Published at another place.
    let mut elsewhere = right.clone();
    elsewhere.target_path = elsewhere.target_path.replace("/latchkey/", "/other/");
    assert_eq!(code(&elsewhere).await, FAILED_PRECONDITION);
    // More than it can.
    let mut block = right.clone();
    let capability = block.volume_capability.as_mut().expect("one");
    capability.access_type = Some(AccessType::Block(Empty {}));
    assert_eq!(code(&block).await, FAILED_PRECONDITION);
    // A field that is missing, and one that is wrong.
    let mut nameless = right.clone();
    nameless.volume_id.clear();
    assert_eq!(code(&nameless).await, INVALID_ARGUMENT);
    let mut outside = right.clone();
    outside.target_path = "/etc".into();
    assert_eq!(code(&outside).await, INVALID_ARGUMENT);
    // None of that has changed anything.
    super::reads_own(&pod.workload).await;
}

#[tokio::test]
async fn a_call_for_a_volume_that_another_call_is_about_is_aborted() {
    needs_workloads!();
    let node = Node::start().await;
    let (volume, _) = node.object_of("test", "web");
    // The agent looks at the pod, and the API server takes its time: the first call is under way.
    node.sandbox.kube.hang();
    let asked = node.sandbox.kube.count("get", "pods");
    let first = node.publish(&volume);
    let second = async {
        let kube = node.sandbox.kube.clone();
        node.sandbox
            .kube
            .until(|kube| kube.count("get", "pods") > asked)
            .await;
        let published = node.publish(&volume).await.expect_err("it is busy").code;
        let unpublished = node
            .kubelet
            .unpublish(&volume)
            .await
            .expect_err("it is busy")
            .code;
        kube.heal();
        (published, unpublished)
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(second, (ABORTED, ABORTED));
    // Whether the first got its answer in time or not, the next succeeds.
    assert!(first.is_ok() || node.kubelet.kept().is_empty());
    node.publish(&volume).await.expect("now");
}

#[tokio::test]
async fn unpublish_refuses_only_what_names_no_volume_and_no_place() {
    needs_workloads!();
    let node = Node::start().await;
    let endpoint = node.kubelet.endpoint();
    let unpublish = async |volume_id: &str, target_path: &str| {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume_id.into(),
            target_path: target_path.into(),
        };
        let path = "/csi.v1.Node/NodeUnpublishVolume";
        match call::<Empty>(&endpoint, path, &request).await {
            Ok(Empty {}) => 0,
            Err(Status { code, .. }) => code,
        }
    };
    let uid = uuid::Uuid::new_v4().to_string();
    let target = node.kubelet.target(&uid, "latchkey");
    let target = target.to_string_lossy();
    assert_eq!(unpublish("", &target).await, INVALID_ARGUMENT);
    assert_eq!(unpublish("csi-1", "").await, INVALID_ARGUMENT);
    assert_eq!(unpublish("csi-1", "/etc").await, INVALID_ARGUMENT);
    // A volume that nobody has published, of a pod that nobody knows.
    assert_eq!(unpublish("csi-1", &target).await, 0);
    std::fs::create_dir_all(&*target).expect("a directory");
    assert_eq!(unpublish("csi-1", &target).await, 0);
    assert!(!std::path::Path::new(&*target).exists());
}

#[tokio::test]
async fn a_pod_that_the_api_server_does_not_know_or_cannot_be_asked_about_is_tried_again() {
    needs_workloads!();
    let node = Node::start().await;
    let (volume, _) = node.object_of("test", "web");
    let request = node
        .kubelet
        .request(&node.sandbox.kube, &volume)
        .expect("a request");
    // Known, and then gone: who has not come yet would come later.
    node.until_known(1.0).await;
    volume.pod.delete();
    node.until_known(0.0).await;
    let Status { code, message } = node.kubelet.send(&request).await.expect_err("it is gone");
    assert_eq!(code, UNAVAILABLE, "{message}");
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
    assert!(!std::path::Path::new(&request.target_path).exists());
}

/// Who can write below the kubelet's directory could otherwise have a pod's socket mounted in another pod.
#[tokio::test]
async fn a_link_in_the_way_to_the_target_is_not_followed_into_another_pods_directory() {
    needs_workloads!();
    let node = Node::start().await;
    let request_of = |name: &str| {
        let (volume, _) = node.object_of("test", name);
        let request = node.kubelet.request(&node.sandbox.kube, &volume);
        let request = request.expect("a request");
        let target = PathBuf::from(&request.target_path);
        (request, target.parent().expect("one").to_owned(), volume)
    };
    let (_, victims, victim) = request_of("victim");
    let (request, parent, _) = request_of("web");
    fs::remove_dir(&parent).expect("it is empty");
    let below = format!(
        "../../../{}/volumes/kubernetes.io~csi/latchkey",
        victim.pod.uid()
    );
    symlink(below, &parent).expect("a link");
    assert_eq!(
        fs::canonicalize(&parent).ok(),
        fs::canonicalize(&victims).ok()
    );
    let refused = node.kubelet.send(&request).await.expect_err("it is a link");
    assert_eq!(refused.code, UNAVAILABLE, "{}", refused.message);
    let planted = fs::read_dir(&victims).expect("a directory").count();
    assert_eq!(planted, 0);
}
