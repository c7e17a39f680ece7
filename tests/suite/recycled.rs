//! A PID is only a number: while a connection waits to be accepted its process may end, and the number may go to a
//! process of another pod. That process must not lend its identity to the connection.

use crate::can_run;
use std::time::{Duration, Instant};
use testkit::binaries::sibling_binary;
use testkit::kube::{Container, PodSpec};
use testkit::pid_namespace::{PidNamespace, Program};
use testkit::sandbox::{ACCOUNT, Sandbox, container_id, password};
use testkit::until;
use testkit::workload::{Request, Signal, Workload, WorkloadSpec};
use tokio::time::sleep;

/// The network of the attacker's process and of the victim's.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Network {
    /// Each pod has its own.
    Own,
    /// Both are on the node's, as a process of the node, and a container while it is being started.
    Node,
}

/// The attacker connects as one process, hands the connection to an accomplice, and ends; the victim's pod is given
/// its number; only then does the agent come to look. `wrapper` starts the agent.
async fn a_recycled_number_lends_no_identity(without: Option<&str>, network: Network) {
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("attacker");
    sandbox.aws_namespace("victim");
    let namespace = PidNamespace::start().await.expect("a PID namespace");

    let settings = sandbox.settings().expect("settings");
    let output = sandbox.directory().join("agent.log");
    let agent = sibling_binary("sandbox-agent").expect("it is built");
    let keys = settings
        .keys
        .iter()
        .flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]);
    let mut program = Program {
        arguments: keys.collect(),
        environment: settings.environment.clone().into_iter().collect(),
        clear: true,
        output: Some(output.clone()),
        ..Program::new(&agent)
    };
    if let Some(what) = without {
        program.file = sibling_binary("without").expect("it is built");
        let wrapped = [what.to_owned(), agent.display().to_string()];
        program.arguments.splice(..0, wrapped);
    }
    let agent = namespace.spawn(program).await.expect("an agent");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&output)
        .unwrap_or_default()
        .contains("\"ready\"")
    {
        assert!(Instant::now() < deadline, "it does not become ready");
        sleep(Duration::from_millis(20)).await;
    }

    let pod = |name: &str, namespace: &str| {
        let container = container_id();
        let object = sandbox.kube.create_pod(PodSpec {
            containers: vec![Container::running("app", &container)],
            ..PodSpec::of(namespace, name, ACCOUNT)
        });
        WorkloadSpec {
            own_network: network == Network::Own,
            ..sandbox.place(object.uid(), &container)
        }
    };
    let must_be_served = async |workload: &Workload, namespace: &str| {
        let path = format!("/v1/secrets/{namespace}/database-password");
        let own = workload.get(&path).await.expect("an answer");
        if network == Network::Node && without.is_some() {
            return own.must_be_refused(403, "not_attested");
        }
        let value = own.json()["value"].as_str().map(str::to_owned);
        assert_eq!((own.status, value), (200, Some(password(namespace))));
    };
    let start = |spec, pid| Workload::start_in(&namespace, spec, pid);
    let attackers = pod("attacker", "attacker");
    let mut attacker = start(attackers.clone(), Some(500))
        .await
        .expect("the attacker");
    let accomplice = start(attackers, None).await.expect("the accomplice");
    must_be_served(&attacker, "attacker").await;

    namespace
        .signal(agent, Signal::SIGSTOP)
        .await
        .expect("it stops");
    attacker
        .connect("waiting")
        .await
        .expect("the kernel takes connections for a stopped agent");
    let meeting = sandbox.directory().join("meeting");
    let (received, passed) = tokio::join!(accomplice.receive("waiting", &meeting), async {
        until("a meeting", async || meeting.exists()).await;
        attacker.pass("waiting", &meeting).await
    });
    received.and(passed).expect("the connection changes hands");
    attacker.kill().await.expect("the attacker ends");
    let victim = start(pod("victim", "victim"), Some(500))
        .await
        .expect("the victim gets the number");
    assert_eq!(victim.pid(), 500);
    namespace
        .signal(agent, Signal::SIGCONT)
        .await
        .expect("it goes on");

    let request = Request::get("/v1/secrets/victim/database-password");
    match accomplice.send_on("waiting", request).await {
        // Closed without a word is as good.
        Err(_) => {}
        Ok(answer) => answer.must_be_refused(403, "not_attested"),
    }
    if without.is_some() && network == Network::Own {
        until("the log names whoever has the number", async || {
            let log = std::fs::read_to_string(&output).expect("a log");
            log.lines().any(|line| {
                ["\"recycled_pid\"", "\"pid\":500", "\"pod_uid\":\""]
                    .iter()
                    .all(|word| line.contains(word))
            })
        })
        .await;
    }
    // And the victim itself is served, so nothing else was in the way; without peer pidfds, not on the node's network.
    must_be_served(&victim, "victim").await;
}

#[tokio::test]
async fn a_number_recycled_in_the_backlog_lends_no_identity() {
    if can_run() {
        a_recycled_number_lends_no_identity(None, Network::Own).await;
        a_recycled_number_lends_no_identity(None, Network::Node).await;
    }
}

#[tokio::test]
async fn a_number_recycled_in_the_backlog_lends_no_identity_without_peer_pidfds_either() {
    if can_run() {
        a_recycled_number_lends_no_identity(Some("peerpidfd"), Network::Own).await;
    }
}

#[tokio::test]
async fn without_peer_pidfds_a_container_that_is_being_started_lends_no_identity_to_the_node() {
    if can_run() {
        a_recycled_number_lends_no_identity(Some("peerpidfd"), Network::Node).await;
    }
}
