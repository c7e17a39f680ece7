//! Processes that would pass for another pod, or for a pod at all.

use crate::{is_no_workload, is_own};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::kube::{Container, PodSpec};
use testkit::sandbox::{ACCOUNT, Sandbox, SandboxPod, container_id};
use testkit::until;
use testkit::workload::{
    Driver, Hierarchies, Place, PodCgroup, Qos, Raw, Request, Runtime, Volume, Workload,
    WorkloadSpec,
};

const OWN: &str = "/v1/secrets/test/database-password";
const FOREIGN: &str = "/v1/secrets/prod/database-password";

/// A node with an agent, a pod in `test` and one in `prod`.
struct Scene {
    sandbox: Sandbox,
    agent: AgentProcess,
    test: SandboxPod,
    prod: SandboxPod,
}

impl Scene {
    async fn set() -> Self {
        Self::set_with(|settings| settings).await
    }

    async fn set_with(change: impl FnOnce(AgentSettings) -> AgentSettings) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        sandbox.aws_namespace("prod");
        let agent = sandbox
            .agent_with(|settings| change(settings.set("limits.attest_wait", "1s")))
            .await
            .expect("an agent");
        let test = sandbox.pod("test", "web").await.expect("a pod");
        let prod = sandbox.pod("prod", "web").await.expect("a pod");
        Self {
            sandbox,
            agent,
            test,
            prod,
        }
    }
}

#[tokio::test]
async fn a_cgroup_below_the_container_that_is_named_like_another_pod_changes_nothing() {
    needs_workloads!();
    let scene = Scene::set().await;
    let (victim, container) = (scene.prod.object.uid(), &scene.prod.container);
    scene
        .test
        .workload
        .nest(&format!("kubepods/besteffort/pod{victim}/{container}"))
        .expect("cgroup2 is writable for root");
    let identity = scene.test.get("/v1/identity").await.expect("an answer");
    assert_eq!(identity.json()["pod_uid"], scene.test.object.uid());
    assert!(is_own(&scene.test.get(OWN).await.expect("an answer")));
    assert_eq!(
        scene.test.get(FOREIGN).await.expect("an answer").status,
        403
    );
    let seen = scene
        .agent
        .metric("latchkey_attestations_total{outcome=\"nested_pod_seen\"}")
        .await;
    assert!(seen.expect("metrics") >= 1.0);
}

#[tokio::test]
async fn a_process_that_moves_into_another_pods_cgroup_loses_its_connection() {
    needs_workloads!();
    let scene = Scene::set().await;
    let workload = &scene.test.workload;
    workload.connect("kept").await.expect("a connection");
    assert!(is_own(
        &workload
            .send_on("kept", Request::get(OWN))
            .await
            .expect("an answer")
    ));
    workload.move_into(&scene.prod.workload).expect("root may");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        let answer = workload
            .send_on("kept", Request::get(FOREIGN))
            .await
            .expect("an answer");
        assert_ne!(answer.status, 200, "{}", answer.text());
        if is_no_workload(&answer) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it was not noticed");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let after = workload.send_on("kept", Request::get(OWN)).await;
    assert!(after.is_err(), "the connection is closed: {after:?}");
    let line = scene
        .agent
        .until_audit(|line| line["reason"] == "identity_changed")
        .await;
    line.expect("why is in the trail");
    let line = scene.agent.until_line("a process was moved").await;
    let line: serde_json::Value =
        serde_json::from_str(&line.expect("it is in the log")).expect("it is JSON");
    for (field, pod) in [("from", "test/web/"), ("to", "prod/web/")] {
        let named = line[field].as_str().unwrap_or_default();
        assert!(named.starts_with(pod), "{line}");
    }
}

#[tokio::test]
async fn who_moves_while_his_pod_is_waited_for_is_whatever_he_is_when_the_wait_ends() {
    needs_workloads!();
    let scene = Scene::set_with(|settings| settings.set("limits.attest_wait", "4s")).await;
    let unknown = uuid::Uuid::new_v4().to_string();
    let place = scene.sandbox.place(&unknown, &container_id());
    let workload = Workload::start(place).await.expect("a process");
    let moves = async {
        // The wait has begun by then, and is far from its end.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        workload.move_into(&scene.prod.workload).expect("root may");
    };
    let (answer, ()) = tokio::join!(workload.get("/v1/identity"), moves);
    let answer = answer.expect("an answer");
    assert_eq!(
        answer.json()["pod_uid"],
        scene.prod.object.uid(),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn a_passed_connection_speaks_for_the_process_that_made_it_and_ends_with_it() {
    needs_workloads!();
    let mut scene = Scene::set().await;
    for gift in ["gift", "silent"] {
        let maker = &scene.test.workload;
        maker.connect(gift).await.expect("a connection");
        let meeting = scene.sandbox.directory().join(gift);
        let (received, passed) = tokio::join!(scene.prod.workload.receive(gift, &meeting), async {
            until("a meeting", async || meeting.exists()).await;
            maker.pass(gift, &meeting).await
        });
        received.and(passed).expect("the connection changes hands");
    }
    let prod = &scene.prod.workload;
    assert!(is_own(
        &prod
            .send_on("gift", Request::get(OWN))
            .await
            .expect("an answer")
    ));
    let foreign = prod
        .send_on("gift", Request::get(FOREIGN))
        .await
        .expect("an answer");
    assert_eq!(foreign.status, 403);
    scene.test.workload.kill().await.expect("it ends");
    // Nothing is asked: the agent itself has heard of the exit.
    let silent = Raw {
        connection: Some("silent".into()),
        ..Raw::new("")
    };
    let received = prod.raw(silent).await.expect("it can be read");
    assert!(received.closed && received.bytes.is_empty(), "{received:?}");
    let after = prod.send_on("gift", Request::get(OWN)).await;
    assert!(after.as_ref().map_or(true, is_no_workload), "{after:?}");
}

#[tokio::test]
async fn every_driver_runtime_and_class_of_service_is_read() {
    needs_workloads!();
    for (driver, runtime, qos) in [
        (Driver::Cgroupfs, Runtime::Containerd, Qos::Guaranteed),
        (Driver::Cgroupfs, Runtime::Crio, Qos::Burstable),
        (Driver::Systemd, Runtime::Containerd, Qos::BestEffort),
        (Driver::Systemd, Runtime::Crio, Qos::Guaranteed),
        (Driver::Systemd, Runtime::Docker, Qos::Burstable),
    ] {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        let container = container_id();
        let object = sandbox.kube.create_pod(PodSpec {
            containers: vec![Container::running("app", &container)],
            ..PodSpec::of("test", "web", ACCOUNT)
        });
        let cgroup = PodCgroup {
            driver,
            runtime,
            qos,
            ..PodCgroup::new(sandbox.cgroup(), object.uid(), &container)
        };
        let root = cgroup.kubepods_root();
        let _agent = sandbox
            .agent_with(|settings| settings.set("identity.kubepods_root", root))
            .await
            .expect("an agent");
        let spec = WorkloadSpec::pod(cgroup, &sandbox.socket());
        let workload = Workload::start(spec).await.expect("a process");
        let answer = workload.get(OWN).await.expect("an answer");
        assert!(
            is_own(&answer),
            "{driver:?} {runtime:?} {qos:?}: {}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn hierarchies_that_name_two_pods_name_none() {
    needs_workloads!();
    let scene = Scene::set().await;
    let place = |pod: &SandboxPod, hierarchies| {
        let cgroup = PodCgroup::new(scene.sandbox.cgroup(), pod.object.uid(), &pod.container);
        Place::Pod(PodCgroup {
            hierarchies,
            ..cgroup
        })
    };
    let spec = WorkloadSpec {
        place: place(&scene.test, Hierarchies::Hybrid),
        ..WorkloadSpec::host(&scene.sandbox.socket())
    };
    let hybrid = match Workload::start(spec).await {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            return testkit::skip::say_skipped(error);
        }
        started => started.expect("a process"),
    };
    assert!(is_own(&hybrid.get(OWN).await.expect("an answer")));
    // The unified hierarchy alone follows into the other pod.
    hybrid.move_into(&scene.prod.workload).expect("root may");
    for path in [OWN, FOREIGN] {
        assert!(is_no_workload(&hybrid.get(path).await.expect("an answer")));
    }
}

#[tokio::test]
async fn a_pod_with_users_of_its_own_and_a_read_only_mount_is_served() {
    needs_workloads!();
    let scene = Scene::set().await;
    let directory = scene
        .sandbox
        .socket()
        .parent()
        .expect("a directory")
        .to_owned();
    // What leads there is the test's own, and closed to everybody else.
    std::fs::set_permissions(
        scene.sandbox.directory(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("it is ours");
    let volume = Volume {
        directory,
        at: "/mnt".into(),
    };
    let spec = WorkloadSpec {
        own_users: true,
        volume: Some(volume),
        socket: "/mnt/agent.sock".into(),
        ..scene
            .sandbox
            .place(scene.test.object.uid(), &scene.test.container)
    };
    let workload = Workload::start(spec).await.expect("a process");
    assert!(is_own(&workload.get(OWN).await.expect("an answer")));
    let removed = workload
        .execute("rm", &["-f", "/mnt/agent.sock"])
        .await
        .expect("there is rm");
    assert_ne!(removed.code, Some(0), "the mount is read-only");
    let line = scene.agent.until_audit(|line| line["uid"] == 200_000).await;
    line.expect("the trail has the node's uid");
}

#[tokio::test]
async fn without_peer_pidfds_an_ordinary_pod_is_served_and_one_of_the_nodes_network_is_not() {
    needs_workloads!();
    let scene = Scene::set_with(|settings| settings.on_a_machine_without("peerpidfd")).await;
    assert!(
        scene
            .agent
            .stderr()
            .iter()
            .any(|line| line.contains("ByNumber"))
    );
    assert!(is_own(&scene.test.get(OWN).await.expect("an answer")));
    let spec = PodSpec {
        host_network: true,
        ..PodSpec::of("test", "on-the-nodes-network", ACCOUNT)
    };
    let placed = scene
        .sandbox
        .pod_placed(spec, |place| place.own_network = false);
    let pod = placed.await.expect("a pod");
    assert!(is_no_workload(&pod.get(OWN).await.expect("an answer")));
    let line = scene
        .agent
        .until_audit(|line| line["reason"] == "host_network_without_pidfd")
        .await;
    line.expect("why is in the trail");
}

#[tokio::test]
async fn a_pod_of_the_nodes_network_is_served_where_peers_are_pinned_by_pidfd() {
    needs_workloads!();
    let scene = Scene::set().await;
    let object = scene.sandbox.kube.create_pod(PodSpec {
        host_network: true,
        ..PodSpec::of("test", "on-the-nodes-network", ACCOUNT)
    });
    let spec = WorkloadSpec {
        own_network: false,
        ..scene.sandbox.place(object.uid(), &container_id())
    };
    let workload = Workload::start(spec).await.expect("a process");
    assert!(is_own(&workload.get(OWN).await.expect("an answer")));
}

#[tokio::test]
async fn cgroups_that_only_look_like_pods_are_none() {
    needs_workloads!();
    let scene = Scene::set().await;
    let (uid, container) = (scene.test.object.uid(), &scene.test.container);
    let parent = scene.sandbox.cgroup();
    for (path, reason) in [
        (
            format!("{parent}/user.slice/kubepods/besteffort/pod{uid}/{container}"),
            "outside_root",
        ),
        (
            format!("{parent}/kubepods/besteffort/pod{uid}/crio-conmon-{container}"),
            "monitor_process",
        ),
        (
            format!(
                "{parent}/kubepods/besteffort/pod{}/{container}",
                "0".repeat(32)
            ),
            "static_pod",
        ),
        (
            format!("{parent}/kubepods/besteffort/pod{uid}/{container} (deleted)"),
            "deleted",
        ),
        (format!("{parent}/system.slice/cron.service"), "not_a_pod"),
    ] {
        let spec = WorkloadSpec {
            place: Place::Path(path.clone(), Hierarchies::V2),
            ..WorkloadSpec::host(&scene.sandbox.socket())
        };
        let workload = Workload::start(spec).await.expect("a process");
        assert!(
            is_no_workload(&workload.get(OWN).await.expect("an answer")),
            "{path}"
        );
        let line = scene
            .agent
            .until_audit(|line| line["reason"] == reason)
            .await;
        line.unwrap_or_else(|error| panic!("{path}: {reason}: {error}"));
    }
}
