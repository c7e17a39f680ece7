//! Pods come and go under the same names and the same PIDs, and nobody is ever taken for another.

use std::path::Path;
use std::time::Duration;
use testkit::binaries::sibling_binary;
use testkit::kube::{Container, PodSpec};
use testkit::pid_namespace::{PidNamespace, Program};
use testkit::sandbox::{ACCOUNT, Sandbox, container_id};
use testkit::workload::{Flood, Workload};
use tokio::time::{sleep, timeout};

/// How many attestations there are unless `LATCHKEY_CHURN` says another number.
const ATTESTATIONS: usize = 10_000;

/// How many pods live at the same time, each followed by the next one in its place.
const PLACES: usize = 4;

/// How many attestations each of a pod's two connections-at-a-time makes in its life.
const EACH: usize = 100;

/// The PID that all pods of the first place have, one after another; those of the next have the next.
const FIRST_PID: u32 = 1_000;

/// The accounts that a pod's name belongs to in turn.
const ACCOUNTS: [&str; 2] = [ACCOUNT, "other"];

/// Starts an agent in the PID namespace, whose end is the agent's too, and waits until it is ready.
async fn agent_inside(sandbox: &Sandbox, inside: &PidNamespace) {
    let settings = sandbox
        .settings()
        .expect("settings")
        .set("limits.requests_per_second_per_pod", 100_000);
    let keys = settings.keys.iter();
    let output = sandbox.directory().join("agent.log");
    let program = Program {
        arguments: keys
            .flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")])
            .collect(),
        environment: settings.environment.clone().into_iter().collect(),
        clear: true,
        output: Some(output.clone()),
        ..Program::new(&sibling_binary("sandbox-agent").expect("built"))
    };
    inside.spawn(program).await.expect("an agent");
    let ready = timeout(Duration::from_secs(20), until_ready(&output)).await;
    assert!(ready.is_ok(), "the agent is not ready");
}

async fn until_ready(output: &Path) {
    let said = || std::fs::read_to_string(output).unwrap_or_default();
    while !said().contains("\"message\":\"ready\"") {
        sleep(Duration::from_millis(5)).await;
    }
}

/// One pod's life in its place: it asks again and again, on a new connection each time, who it is.
async fn live(sandbox: &Sandbox, inside: &PidNamespace, place: usize, life: usize) -> usize {
    let account = ACCOUNTS[life % ACCOUNTS.len()];
    let container = container_id();
    let object = sandbox.kube.create_pod(PodSpec {
        containers: vec![Container::running("app", &container)],
        ..PodSpec::of("test", &format!("web-{place}"), account)
    });
    let pid = FIRST_PID + u32::try_from(place).expect("few places");
    let spec = sandbox.place(object.uid(), &container);
    let mut workload = Workload::start_in(inside, spec, Some(pid))
        .await
        .expect("a pod");
    let identity = workload.get("/v1/identity").await.expect("an answer");
    let said = identity.json();
    assert_eq!(identity.status, 200, "{said}");
    assert_eq!(said["pod_uid"], object.uid());
    assert_eq!(said["container_id"], *container);
    assert_eq!(said["service_account"], account);

    let flood = Flood {
        path: "/v1/identity".into(),
        connections: 2,
        requests: EACH,
        reconnect: true,
        interval_micros: 0,
        expect: Some(object.uid().to_owned()),
    };
    let flooded = workload.flood(flood).await.expect("the pod lives");
    assert_eq!(flooded.wrong, 0, "somebody was taken for another");
    let all = (flooded.count(200), flooded.failures);
    assert_eq!(
        all,
        (2 * EACH, 0),
        "{:?} {:?}",
        flooded.statuses,
        flooded.errors
    );
    // Now the object goes first, now the process.
    if life.is_multiple_of(2) {
        object.delete();
        workload.kill().await.expect("killed");
    } else {
        workload.kill().await.expect("killed");
        object.delete();
    }
    2 * EACH + 1
}

#[tokio::test(flavor = "multi_thread")]
async fn while_pods_come_and_go_nobody_is_taken_for_another() {
    needs_workloads!();
    #[expect(
        clippy::disallowed_methods,
        reason = "how many is for whoever runs the tests"
    )]
    let wanted = std::env::var("LATCHKEY_CHURN").ok();
    let wanted = wanted.map_or(ATTESTATIONS, |number| {
        number.parse().expect("LATCHKEY_CHURN is a number")
    });
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.kube.create_service_account("test", "other", &[]);
    let inside = PidNamespace::start().await.expect("a PID namespace");
    agent_inside(&sandbox, &inside).await;
    let places = (0..PLACES).map(|place| {
        let (sandbox, inside) = (&sandbox, &inside);
        async move {
            let (mut attested, mut life) = (0, 0);
            while attested < wanted.div_ceil(PLACES) {
                attested += live(sandbox, inside, place, life).await;
                life += 1;
            }
            attested
        }
    });
    let attested: usize = futures::future::join_all(places).await.into_iter().sum();
    assert!(attested >= wanted, "{attested}");
}
