//! The socket by which the mounter asks the agent, and who else is heard there: nobody.

use super::{Node, settings};
use std::path::PathBuf;
use testkit::kube::PodSpec;
use testkit::kubelet::Kubelet;
use testkit::sandbox::{Sandbox, container_id};
use testkit::workload::{Raw, Workload, WorkloadSpec};

/// What the agent tells whoever it does not take for its mounter.
const NOT_THE_MOUNTER: &str = "not the agent's own mounter";

/// Where the agent listens for the mounter.
pub(super) fn control(kubelet: &Kubelet) -> PathBuf {
    kubelet.directory().join("run/control.sock")
}

/// Asks as an agent does that takes over from another.
async fn asks_for_all_tokens(asker: &Workload) -> String {
    let question = b"\"tokens\"";
    let length = u32::try_from(question.len()).expect("short");
    let bytes = [&length.to_be_bytes(), &question[..], &[0; 4]].concat();
    let received = asker.raw(Raw::new(bytes)).await.expect("an answer");
    String::from_utf8_lossy(&received.bytes).into_owned()
}

#[tokio::test]
async fn whoever_is_root_and_not_the_mounter_is_refused_on_the_control_socket() {
    needs_workloads!();
    let node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let spec = WorkloadSpec {
        socket: control(&node.kubelet),
        ..node.sandbox.place(pod.volume.pod.uid(), &container_id())
    };
    let intruder = Workload::start(spec).await.expect("a process");
    let text = asks_for_all_tokens(&intruder).await;
    assert!(text.contains(NOT_THE_MOUNTER), "{text}");
    assert!(!text.contains("eyJ"), "a token was given away");
    let counted = "latchkey_attestations_total{outcome=\"not_the_mounter\"}";
    assert!(node.agent.metric(counted).await.expect("a metric") >= 1.0);
}

/// Where the agent is a pod, as it is in every cluster.
#[tokio::test]
async fn only_pods_of_the_agents_own_account_speak_for_the_mounter() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    for namespace in ["latchkey", "test"] {
        sandbox.kube.create_namespace(namespace, &[]);
        for account in ["latchkey-agent", "other"] {
            let kube = &sandbox.kube;
            kube.create_service_account(namespace, account, &[]);
        }
    }
    let kubelet = Kubelet::new().expect("a directory");
    let _mounter = kubelet.mounter().await.expect("a mounter");
    let pod_of = async |namespace: &str, account: &str, name: &str| {
        let spec = PodSpec::of(namespace, name, account);
        let placed = sandbox.pod_placed(spec, |place| place.socket = control(&kubelet));
        placed.await.expect("a pod")
    };
    let own = pod_of("latchkey", "latchkey-agent", "agent").await;
    let surged = pod_of("latchkey", "latchkey-agent", "surged").await;
    let mut intruders = Vec::new();
    for (namespace, account) in [
        ("latchkey", "other"),
        ("test", "latchkey-agent"),
        ("test", "other"),
    ] {
        let intruder = pod_of(namespace, account, &format!("as-{account}")).await;
        intruders.push((format!("{namespace}/{account}"), intruder.workload));
    }
    let on_the_node = Workload::start(WorkloadSpec::host(&control(&kubelet))).await;
    intruders.push(("no pod".into(), on_the_node.expect("a process")));
    let entrance = own.workload.entrance().expect("a cgroup");
    let script = format!("echo $$ > {} && exec \"$0\" \"$@\"", entrance.display());
    let settings = settings(&sandbox, &kubelet)
        .env("POD_UID", own.object.uid())
        .wrapped(&["sh", "-c", &script]);
    let _agent = settings.start_ready().await.expect("an agent");

    for asker in [&own, &surged] {
        let text = asks_for_all_tokens(&asker.workload).await;
        assert!(text.contains("\"pods\":["), "{text}");
    }
    for (whose, intruder) in &intruders {
        let text = asks_for_all_tokens(intruder).await;
        assert!(text.contains(NOT_THE_MOUNTER), "{whose}: {text}");
    }
}
