//! Delivery by CSI: a kubelet that the test plays, the mounter as a real process, and an agent that may ask for no token.

mod control;
mod errors;
mod files;
mod limits;
mod restarts;
mod tokens;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::kube::{Container, PodSpec};
use testkit::kubelet::{Kubelet, Status, VolumeSpec};
use testkit::process::Process;
use testkit::sandbox::{ACCOUNT, Sandbox, container_id, password};
use testkit::until;
use testkit::workload::{Signal, Volume, Workload, WorkloadSpec};

/// What a pod of namespace `test` may read.
const OWN: &str = "/v1/secrets/test/database-password";

/// Where pods have their volume.
const AT: &str = "/run/latchkey";

// Codes of gRPC.
const INVALID_ARGUMENT: u16 = 3;
const NOT_FOUND: u16 = 5;
const ALREADY_EXISTS: u16 = 6;
const PERMISSION_DENIED: u16 = 7;
const FAILED_PRECONDITION: u16 = 9;
const ABORTED: u16 = 10;
const UNIMPLEMENTED: u16 = 12;
const UNAVAILABLE: u16 = 14;

/// A node with mounter and agent, which has no right on tokens; the namespaces `test` and `prod`.
struct Node {
    sandbox: Sandbox,
    kubelet: Kubelet,
    mounter: Process,
    agent: AgentProcess,
}

/// A pod with its volume, whose container runs.
struct CsiPod {
    volume: VolumeSpec,
    workload: Workload,
}

impl Node {
    async fn start() -> Self {
        Self::start_with(|settings| settings).await
    }

    async fn start_with(change: impl FnOnce(AgentSettings) -> AgentSettings) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        sandbox.aws_namespace("test");
        sandbox.aws_namespace("prod");
        sandbox.kube.forbid("create", "serviceaccounts/token");
        let kubelet = Kubelet::new().expect("a directory");
        let mounter = kubelet.mounter().await.expect("a mounter");
        let agent = change(settings(&sandbox, &kubelet)).start().await;
        let agent = agent.expect("an agent");
        agent.until_ready().await.expect("it is ready");
        Self {
            sandbox,
            kubelet,
            mounter,
            agent,
        }
    }

    /// Ends the agent as a crash would.
    async fn kill_agent(&mut self) {
        self.agent.signal(Signal::SIGKILL).expect("it runs");
        self.agent.until_ended().await.expect("it ends");
    }

    /// Starts an agent in the place of the one that has ended.
    async fn start_agent(&mut self) {
        let agent = settings(&self.sandbox, &self.kubelet).start().await;
        self.agent = agent.expect("an agent");
        self.agent.until_ready().await.expect("it is ready");
    }

    fn object(&self, spec: PodSpec) -> (VolumeSpec, String) {
        let container = container_id();
        let object = self.sandbox.kube.create_pod(PodSpec {
            phase: "Pending".into(),
            containers: vec![Container::new("app")],
            ..spec
        });
        (VolumeSpec::of(&object), container)
    }

    /// An ordinary pod's volume, and the id of its container.
    fn object_of(&self, namespace: &str, name: &str) -> (VolumeSpec, String) {
        self.object(PodSpec::of(namespace, name, ACCOUNT))
    }

    /// An agent that has taken over from this node's, with the tokens of its pods.
    async fn successor(&self, change: impl FnOnce(AgentSettings) -> AgentSettings) -> AgentProcess {
        let next = change(settings(&self.sandbox, &self.kubelet)).start().await;
        let next = next.expect("an agent");
        next.until_ready().await.expect("it is ready");
        let told = next.until_line("took the pods' tokens over").await;
        told.expect("it says so");
        next
    }

    /// Starts a pod as a kubelet does: first its volume, then its container.
    async fn pod(&self, namespace: &str, name: &str) -> CsiPod {
        let (volume, container) = self.object_of(namespace, name);
        self.publish(&volume).await.expect("it is published");
        let workload = self.container(&volume, &container).await;
        CsiPod { volume, workload }
    }

    /// Starts the container of a pod whose volume is published.
    async fn container(&self, volume: &VolumeSpec, container: &str) -> Workload {
        let place = self.sandbox.place(volume.pod.uid(), container);
        let workload = Workload::start(self.with_volume(volume, place)).await;
        workload.expect("a process")
    }

    /// The same process, with another pod's volume where its own would be.
    fn with_volume(&self, volume: &VolumeSpec, spec: WorkloadSpec) -> WorkloadSpec {
        WorkloadSpec {
            socket: Path::new(AT).join("agent.sock"),
            volume: Some(Volume {
                directory: self.kubelet.target(volume.pod.uid(), &volume.name),
                at: AT.into(),
            }),
            ..spec
        }
    }

    /// A process of that pod on the socket that all pods share.
    async fn on_shared(&self, volume: &VolumeSpec) -> Workload {
        let place = self.sandbox.place(volume.pod.uid(), &container_id());
        Workload::start(place).await.expect("a process")
    }

    /// Waits until the agent knows so many pods.
    async fn until_known(&self, pods: f64) {
        self.until_metric("latchkey_pods", pods).await;
    }

    async fn until_metric(&self, name: &str, value: f64) {
        let shown = async || self.agent.metric(name).await.expect("a metric");
        until(name, async || shown().await == value).await;
    }

    async fn publish(&self, volume: &VolumeSpec) -> Result<(), Status> {
        let published = self.kubelet.publish(&self.sandbox.kube, volume).await;
        published.map(drop)
    }
}

fn settings(sandbox: &Sandbox, kubelet: &Kubelet) -> AgentSettings {
    let settings = sandbox.settings().expect("settings");
    settings
        .set("csi.enabled", true)
        .set("csi.directory", kubelet.directory().display())
}

async fn reads_own(workload: &Workload) {
    let answer = workload.get(OWN).await.expect("an answer");
    let value = answer.json()["value"].as_str().map(str::to_owned);
    let seen = (answer.status, value);
    assert_eq!(seen, (200, Some(password("test"))), "{}", answer.text());
}

#[tokio::test]
async fn a_pod_reads_through_its_own_socket_and_the_agent_needs_no_right_on_tokens() {
    needs_workloads!();
    let node = Node::start().await;
    let info = node.kubelet.register().await.expect("it registers");
    assert_eq!(info.kind, "CSIPlugin");
    assert_eq!(info.endpoint, node.kubelet.endpoint().to_string_lossy());
    let pod = node.pod("test", "web").await;
    reads_own(&pod.workload).await;
    let other = pod
        .workload
        .get("/v1/secrets/prod/database-password")
        .await
        .expect("an answer");
    other.must_be_refused(403, "denied");
    assert!(
        node.sandbox.kube.tokens().is_empty(),
        "the agent asked for a token itself"
    );
    // On the shared socket it is the same pod, and has its tokens there too.
    reads_own(&node.on_shared(&pod.volume).await).await;
}

#[tokio::test]
async fn a_pod_is_known_when_its_container_starts_even_if_the_watch_is_late() {
    needs_workloads!();
    let node = Node::start().await;
    node.sandbox.kube.watch_delay(Duration::from_secs(30));
    let pod = node.pod("test", "web").await;
    let begun = Instant::now();
    reads_own(&pod.workload).await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_process_that_gets_hold_of_another_pods_socket_is_refused_and_counted() {
    needs_workloads!();
    let node = Node::start().await;
    let victim = node.pod("prod", "victim").await;
    let thief = node.pod("test", "thief").await;
    let place = node.sandbox.place(thief.volume.pod.uid(), &container_id());
    let spec = node.with_volume(&victim.volume, place);
    let on_victims = Workload::start(spec).await.expect("a process");
    for path in [OWN, "/v1/secrets/prod/database-password", "/v1/identity"] {
        let answer = on_victims.get(path).await.expect("an answer");
        answer.must_be_refused(403, "not_attested");
    }
    let line = node
        .agent
        .until_audit(|line| line["reason"] == "listener_mismatch")
        .await;
    assert_eq!(
        line.expect("it is in the trail")["pod"],
        serde_json::Value::Null
    );
    let counted = "latchkey_attestations_total{outcome=\"listener_mismatch\"}";
    assert!(node.agent.metric(counted).await.expect("a metric") >= 3.0);
    // A process of the node has no pod at all.
    let spec = node.with_volume(&victim.volume, WorkloadSpec::host(Path::new(AT)));
    let host = Workload::start(spec).await.expect("a process");
    let answer = host.get(OWN).await.expect("an answer");
    answer.must_be_refused(403, "not_attested");
}

#[tokio::test]
async fn a_process_that_moves_into_the_pod_of_another_socket_loses_its_connection() {
    needs_workloads!();
    let node = Node::start().await;
    let (one, two) = (node.pod("test", "one").await, node.pod("test", "two").await);
    one.workload.connect("kept").await.expect("a connection");
    let read = testkit::workload::Request::get(OWN);
    let answer = one.workload.send_on("kept", read).await;
    assert_eq!(answer.expect("an answer").status, 200);
    one.workload.move_into(&two.workload).expect("root may");
    // Within the second for which a look at the cgroup stands.
    let deadline = Instant::now() + Duration::from_secs(10);
    let refused = loop {
        let request = testkit::workload::Request::get(OWN);
        let answer = one
            .workload
            .send_on("kept", request)
            .await
            .expect("an answer");
        if answer.status != 200 {
            break answer;
        }
        assert!(Instant::now() < deadline, "it goes on being served");
    };
    refused.must_be_refused(403, "not_attested");
    let line = node
        .agent
        .until_audit(|line| line["reason"] == "identity_changed")
        .await;
    line.expect("why is in the trail");
    let told = node.agent.until_line("a process was moved").await;
    let told = told.expect("from where is in the log");
    assert!(told.contains("test/one/") && told.contains("listener_mismatch"));
}

#[tokio::test]
async fn a_sandbox_outside_of_the_pods_cgroup_is_known_by_its_socket_only_where_its_class_is_named()
{
    needs_workloads!();
    for (named, status) in [(false, 403), (true, 200)] {
        let node = Node::start_with(|settings| match named {
            true => settings.set("identity.csi_only_runtimes", "[\"sandboxed\"]"),
            false => settings,
        })
        .await;
        for (class, status) in [
            (Some("sandboxed"), status),
            (Some("other"), 403),
            (None, 403),
        ] {
            let (volume, _) = node.object(PodSpec {
                runtime_class: class.map(str::to_owned),
                ..PodSpec::of("test", &format!("in-{}", class.unwrap_or("none")), ACCOUNT)
            });
            node.publish(&volume).await.expect("it is published");
            let spec = node.with_volume(&volume, WorkloadSpec::host(Path::new(AT)));
            let outside = Workload::start(spec).await.expect("a process");
            let answer = outside.get(OWN).await.expect("an answer");
            assert_eq!(answer.status, status, "{class:?} {}", answer.text());
            // Where the cgroup names a pod, that counts.
            let other = node
                .sandbox
                .place(&uuid::Uuid::new_v4().to_string(), &container_id());
            let spec = node.with_volume(&volume, other);
            let elsewhere = Workload::start(spec).await.expect("a process");
            let answer = elsewhere.get(OWN).await.expect("an answer");
            answer.must_be_refused(403, "not_attested");
        }
    }
}

/// Nothing tells its containers apart.
#[tokio::test]
async fn a_sandbox_that_is_known_by_its_socket_has_no_role_where_one_of_its_containers_is_exempt() {
    needs_workloads!();
    let named =
        |settings: AgentSettings| settings.set("identity.csi_only_runtimes", "[\"sandboxed\"]");
    let node = Node::start_with(named).await;
    let (volume, _) = node.object(PodSpec {
        runtime_class: Some("sandboxed".to_owned()),
        annotations: vec![("eks.amazonaws.com/skip-containers".into(), "proxy".into())],
        ..PodSpec::of("test", "web", ACCOUNT)
    });
    node.publish(&volume).await.expect("it is published");
    let spec = node.with_volume(&volume, WorkloadSpec::host(Path::new(AT)));
    let outside = Workload::start(spec).await.expect("a process");
    let answer = outside.get(OWN).await.expect("an answer");
    answer.must_be_refused(403, "no_role");
    assert!(
        answer.text().contains("which of them asks"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn without_peer_pidfds_a_pod_of_the_nodes_network_is_served_on_its_own_socket() {
    needs_workloads!();
    let node = Node::start_with(|settings| settings.on_a_machine_without("peerpidfd")).await;
    let (volume, container) = node.object(PodSpec {
        host_network: true,
        ..PodSpec::of("test", "on-the-nodes-network", ACCOUNT)
    });
    node.publish(&volume).await.expect("it is published");
    let place = WorkloadSpec {
        own_network: false,
        ..node.sandbox.place(volume.pod.uid(), &container)
    };
    let own = Workload::start(node.with_volume(&volume, place.clone())).await;
    reads_own(&own.expect("a process")).await;
    let shared = Workload::start(place).await.expect("a process");
    let answer = shared.get(OWN).await.expect("an answer");
    answer.must_be_refused(403, "not_attested");
}

#[tokio::test]
async fn a_published_volume_is_one_read_only_mount_however_often_it_is_published() {
    needs_workloads!();
    let node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let target = node.kubelet.target(pod.volume.pod.uid(), "latchkey");
    let inode = fs::metadata(target.join("agent.sock"))
        .expect("a socket")
        .ino();
    for _ in 0..20 {
        node.publish(&pod.volume).await.expect("again");
    }
    let mounts = node.kubelet.mounts();
    let here = mounts.iter().filter(|point| **point == target).count();
    assert_eq!(here, 1, "{mounts:?}");
    let again = fs::metadata(target.join("agent.sock")).expect("a socket");
    assert_eq!(again.ino(), inode, "the socket was made anew");
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("it can be read");
    let line = mountinfo
        .lines()
        .find(|line| line.contains(&*target.to_string_lossy()))
        .expect("the mount");
    assert!(line.contains(" ro,nosuid,nodev,noexec"), "{line}");
    // The kubelet makes a subPath that is missing, as root and where the pod wants it.
    let made = fs::create_dir_all(target.join("evil/a")).expect_err("it is read-only");
    assert_eq!(made.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    reads_own(&pod.workload).await;
}

#[tokio::test]
async fn a_mount_that_was_left_half_made_or_stacked_is_put_right() {
    needs_workloads!();
    use nix::mount::{MsFlags, mount};
    let node = Node::start().await;
    let pod = node.pod("test", "web").await;
    let target = node.kubelet.target(pod.volume.pod.uid(), "latchkey");
    let none = None::<&str>;
    // What a mounter leaves that dies before it has mounted the volume.
    let run = node.kubelet.directory().join("run");
    let key = node.kubelet.kept().remove(0);
    let stage = || {
        let staging = run.join("staging").join(&key);
        fs::create_dir(&staging).expect("the mounter has removed it");
        let from = run.join("p").join(&key);
        mount(Some(&from), &staging, none, MsFlags::MS_BIND, none).expect("root may");
    };
    stage();
    // Something else is on top.
    for _ in 0..3 {
        mount(Some("/tmp"), &target, none, MsFlags::MS_BIND, none).expect("root may");
    }
    node.publish(&pod.volume).await.expect("again");
    let mounts = node.kubelet.mounts();
    assert_eq!(mounts.iter().filter(|point| **point == target).count(), 1);
    assert!(target.join("agent.sock").exists());
    fs::write(target.join("x"), "x").expect_err("it is read-only");
    // The next call finds all as it should be, and is not killed in the middle.
    stage();
    node.kubelet.unpublish(&pod.volume).await.expect("it goes");
    assert!(!target.exists());
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
    let mounts = node.kubelet.mounts();
    assert!(
        !mounts
            .iter()
            .any(|point| point.starts_with(run.join("staging")))
    );
}

#[tokio::test]
async fn an_unpublished_volume_leaves_nothing_and_can_be_unpublished_again() {
    needs_workloads!();
    let node = Node::start().await;
    let before = node.kubelet.mounts();
    let descriptors = |pid: u32| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("fds")
            .count()
    };
    let warm = node.pod("test", "warm").await;
    reads_own(&warm.workload).await;
    node.kubelet.unpublish(&warm.volume).await.expect("it goes");
    let count = descriptors(node.agent.pid());
    let mut pods = Vec::new();
    for number in 0..20 {
        pods.push(node.pod("test", &format!("web-{number}")).await);
    }
    reads_own(&pods[7].workload).await;
    // So what is empty in the end is what was looked at.
    assert_eq!(node.kubelet.kept().len(), 2 * pods.len());
    for pod in pods {
        let CsiPod { volume, workload } = pod;
        drop(workload);
        for _ in 0..2 {
            node.kubelet.unpublish(&volume).await.expect("it goes");
        }
        volume.pod.delete();
        assert!(!node.kubelet.target(volume.pod.uid(), "latchkey").exists());
    }
    assert_eq!(node.kubelet.mounts(), before);
    assert_eq!(node.kubelet.kept(), Vec::<String>::new());
    until("as many descriptors as before", async || {
        descriptors(node.agent.pid()) <= count
    })
    .await;
}
