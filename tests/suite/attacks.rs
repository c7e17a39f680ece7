//! Whoever tries to pass for another pod by means outside of the cgroup tree, and an agent inside a cgroup namespace.

use std::path::PathBuf;
use testkit::kube::PodSpec;
use testkit::sandbox::{ACCOUNT, Sandbox, SandboxPod};
use testkit::workload::{Driver, Place, PodCgroup, Qos, Volume, Workload, WorkloadSpec};

/// A sandbox with the namespaces `test` and `prod`.
async fn two_namespaces() -> Sandbox {
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.aws_namespace("prod");
    sandbox
}

/// The pod UID that the agent says the workload is.
async fn pod_uid(workload: &Workload) -> String {
    let answer = workload.get("/v1/identity").await.expect("an answer");
    answer.must_be_ok();
    answer.json()["pod_uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// A pod of `test` whose process is where `change` puts it.
async fn pod_placed(
    sandbox: &Sandbox,
    name: &str,
    change: impl FnOnce(&mut WorkloadSpec),
) -> SandboxPod {
    let spec = PodSpec::of("test", name, ACCOUNT);
    let pod = sandbox.pod_placed(spec, change).await;
    pod.expect("a pod")
}

/// Moves a workload's place to that class of service.
fn of_class(qos: Qos) -> impl FnOnce(&mut WorkloadSpec) {
    move |spec| {
        if let Place::Pod(place) = &mut spec.place {
            *place = PodCgroup {
                qos,
                driver: Driver::Cgroupfs,
                ..place.clone()
            };
        }
    }
}

#[tokio::test]
async fn what_mountinfo_says_is_never_asked() {
    needs_workloads!();
    let sandbox = two_namespaces().await;
    let victim = sandbox.pod("prod", "web").await.expect("a pod");
    let attacker = sandbox.pod("test", "web").await.expect("a pod");
    let Place::Pod(place) = &victim.workload.spec().place else {
        panic!("a pod's place");
    };
    let lie = sandbox.directory().join("mountinfo");
    let path = place.path();
    let text = format!("30 23 0:26 {path} /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
    std::fs::write(&lie, text).expect("written");
    // As the agent sees it, both the peer's and its own file lie.
    let script = format!(
        "for pid in {} $$; do mount --bind {} /proc/$pid/mountinfo || exit 1; done; exec \"$0\" \"$@\"",
        attacker.workload.pid(),
        lie.display(),
    );
    let _agent = sandbox
        .agent_with(|settings| settings.wrapped(&["unshare", "--mount", "sh", "-c", &script]))
        .await
        .expect("an agent");
    assert_eq!(pod_uid(&attacker.workload).await, attacker.object.uid());
    assert_eq!(pod_uid(&victim.workload).await, victim.object.uid());
}

#[tokio::test]
async fn another_pods_namespaces_give_nobody_its_identity() {
    needs_workloads!();
    let sandbox = two_namespaces().await;
    let _agent = sandbox.agent().await.expect("an agent");
    let victim = sandbox.pod("prod", "web").await.expect("a pod");
    let attacker = sandbox.pod("test", "web").await.expect("a pod");
    let node = Workload::start(WorkloadSpec::host(&sandbox.socket()))
        .await
        .expect("a process");
    let target = victim.workload.pid().to_string();
    let socket = sandbox.socket().display().to_string();
    let url = "http://localhost/v1/identity";
    let enter = ["--target", &target, "--net", "--ipc", "--uts"];
    let ask = ["curl", "--silent", "--unix-socket", &socket, url];
    let entering = [&enter[..], &ask[..]].concat();
    let said = attacker
        .workload
        .execute("nsenter", &entering)
        .await
        .expect("nsenter");
    assert!(said.stdout.contains(attacker.object.uid()), "{said:?}");
    let said = node.execute("nsenter", &entering).await.expect("nsenter");
    assert!(said.stdout.contains("not_attested"), "{said:?}");
}

#[tokio::test]
async fn a_read_only_directory_lets_pods_connect_and_change_nothing() {
    needs_workloads!();
    let sandbox = two_namespaces().await;
    let _agent = sandbox.agent().await.expect("an agent");
    let at = PathBuf::from("/run/latchkey-of-the-suite");
    let directory = sandbox.socket().parent().expect("a directory").to_owned();
    let pod = pod_placed(&sandbox, "mounted", |spec| {
        spec.socket = at.join("agent.sock");
        spec.volume = Some(Volume {
            directory,
            at: at.clone(),
        });
    })
    .await;
    let socket = at.join("agent.sock").display().to_string();
    let planted = at.join("planted").display().to_string();
    for (program, arguments) in [
        ("rm", vec!["-f", &*socket]),
        ("ln", vec!["-s", "/etc/passwd", &*planted]),
        ("mv", vec![&*socket, &*planted]),
        ("chmod", vec!["0600", &*socket]),
    ] {
        let refused = pod
            .workload
            .execute(program, &arguments)
            .await
            .expect("it runs");
        assert_ne!(refused.code, Some(0), "{program}");
        assert!(
            refused.stderr.contains("Read-only"),
            "{program}: {refused:?}"
        );
    }
    assert_eq!(pod_uid(&pod.workload).await, pod.object.uid());
}

#[tokio::test]
async fn an_agent_in_a_cgroup_namespace_learns_the_root_and_attests_every_class() {
    needs_workloads!();
    let sandbox = two_namespaces().await;
    let own = pod_placed(&sandbox, "agent", |_| {}).await;
    let entrance = own.workload.entrance().expect("a cgroup");
    let script = format!(
        "echo $$ > {} && exec unshare --cgroup \"$0\" \"$@\"",
        entrance.display()
    );
    let _agent = sandbox
        .agent_with(|mut settings| {
            settings.keys.remove("identity.kubepods_root");
            settings
                .env("POD_UID", own.object.uid())
                .wrapped(&["sh", "-c", &script])
        })
        .await
        .expect("an agent");
    for qos in [Qos::BestEffort, Qos::Burstable, Qos::Guaranteed] {
        let peer = pod_placed(&sandbox, &format!("{qos:?}").to_lowercase(), of_class(qos)).await;
        assert_eq!(pod_uid(&peer.workload).await, peer.object.uid(), "{qos:?}");
    }
    let node = Workload::start(WorkloadSpec::host(&sandbox.socket()))
        .await
        .expect("a process");
    for denied in [&node, &own.workload] {
        let answer = denied.get("/v1/identity").await.expect("an answer");
        answer.must_be_refused(403, "not_attested");
    }
}
