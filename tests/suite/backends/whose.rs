//! Nobody reads with anybody else's role, nor what his own may not.

use super::{Backend, FOREIGN, OWN};
use crate::code;
use futures::future::join_all;
use testkit::sandbox::{CANARY, password};
use testkit::workload::Flood;

/// Names that could mean something else on their way: to the agent, to an SDK, to a URL, to a file system.
const ESCAPING: [&str; 24] = [
    "../prod/database-password",
    "test/../prod/database-password",
    "test/../../secrets/prod--database-password",
    "test%2F..%2Fprod%2Fdatabase-password",
    "%2e%2e/prod/database-password",
    "test/%2e%2e/prod/database-password",
    "test/%252e%252e/prod/database-password",
    "/prod/database-password",
    "//prod/database-password",
    "prod//database-password",
    "./prod/database-password",
    "test/./database-password/../../prod/database-password",
    "test%5C..%5Cprod%5Cdatabase-password",
    "prod--database-password",
    "test/../prod--database-password",
    "test/database-password/versions/1",
    "test--database-password%2Fversions%2F1%3Aaccess%3F",
    "test/database-password%3Fx",
    "test/database-password%23x",
    "test/database-password%00",
    "test/database-password%0a",
    "test/*",
    "prod/database-password%20",
    "Prod/database-password",
];

/// Prefixes that could lead elsewhere than to below where the backend's names are.
const ESCAPING_PREFIXES: [&str; 14] = [
    "../",
    "../../",
    "../../sys/",
    "/",
    "//",
    "./",
    "prod/",
    "prod/../",
    "prod--",
    "%2e%2e/prod/",
    "prod/?",
    "prod/#",
    "*",
    "a b/",
];

pub(super) async fn denied_by_role(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    node.cloud.impostor(&node.sandbox, "thief", "prod");
    let thief = node.sandbox.pod("thief", "web").await.expect("a pod");
    for name in [FOREIGN, OWN] {
        let answer = thief.secret(name).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (403, "denied"),
            "{}",
            answer.text()
        );
        assert!(!answer.text().contains(&password("prod")));
    }
    let listed = thief.get("/v1/secrets").await.expect("an answer");
    assert_eq!(
        (listed.status, &*code(&listed)),
        (403, "denied"),
        "{}",
        listed.text()
    );
}

pub(super) async fn denied_by_secret(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    assert_eq!(node.ask(OWN).await.status, 200);
    let answer = node.refused(FOREIGN, 403, "denied").await;
    assert!(!answer.text().contains(&password("prod")));
    let line = node
        .agent
        .until_audit(|line| line["secret"] == FOREIGN)
        .await
        .expect("a line");
    assert_eq!(
        (&line["code"], &line["backend"]),
        (&"denied".into(), &backend.name.into())
    );
    // It is the cloud that says so, and what is the pod's own is served on.
    assert_eq!(node.ask(OWN).await.status, 200);
}

/// Whoever reads the cloud's own log finds out for which pod a call was made.
pub(super) async fn told_to_the_cloud(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    assert_eq!(node.ask(OWN).await.status, 200);
    node.refused(FOREIGN, 403, "denied").await;
    let uid = node.pod.object.uid();
    let log = node.cloud.log();
    assert!(log.iter().any(|call| call.was_refused), "{log:?}");
    for call in log {
        let told = call.line.contains(uid) || call.line.contains(&uid.replace('-', ""));
        assert!(told, "{uid}: {call:?}");
    }
}

/// Whoever reads the audit trail finds the call in the cloud's own log.
pub(super) async fn told_by_the_cloud(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    assert_eq!(node.ask(OWN).await.status, 200);
    node.refused(FOREIGN, 403, "denied").await;
    for name in [OWN, FOREIGN] {
        let line = node.agent.until_audit(|line| line["secret"] == name).await;
        let line = line.expect("a line");
        assert!(line["cloud_request_id"].is_string(), "{line}");
    }
}

pub(super) async fn revoked_role(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let prod = node.sandbox.pod("prod", "web").await.expect("a pod");
    assert_eq!(node.ask(OWN).await.status, 200);
    assert_eq!(prod.secret(FOREIGN).await.expect("an answer").status, 200);
    assert!(node.cloud.revoke("test"), "there is a role to take away");
    node.refused(OWN, 403, "denied").await;
    assert_eq!(prod.secret(FOREIGN).await.expect("an answer").status, 200);
}

pub(super) async fn escaping_names(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    assert_eq!(node.ask(OWN).await.status, 200);
    let before = node.cloud.log().len();
    for name in ESCAPING {
        let answer = node.ask(name).await;
        assert!(
            [400, 403, 404].contains(&answer.status),
            "{name}: {} {}",
            answer.status,
            answer.text()
        );
        assert!(!answer.text().contains(CANARY), "{name}: {}", answer.text());
    }
    // What got as far as the backend was asked for as one secret, and refused as that.
    for call in node.cloud.log().iter().skip(before) {
        assert!(call.was_refused && !call.line.contains(".."), "{call:?}");
    }
    let longest = format!("test/{}", "n".repeat(600));
    assert_eq!(node.ask(&longest).await.status, 400);
}

pub(super) async fn escaping_prefixes(backend: &Backend) {
    let Some(node) = backend.node().await else {
        return;
    };
    let harmless = [("latchkey.dev/prefix", "own/")];
    node.cloud.namespace(&node.sandbox, "own");
    node.sandbox.kube.create_namespace("own", &harmless);
    let pod = node.sandbox.pod("own", "web").await.expect("a pod");
    let answer = pod.secret("database-password").await.expect("an answer");
    assert_eq!(answer.json()["value"], password("own"), "it is read at all");
    for (number, prefix) in ESCAPING_PREFIXES.into_iter().enumerate() {
        let namespace = format!("n{number}");
        node.cloud.namespace(&node.sandbox, &namespace);
        let annotation = [("latchkey.dev/prefix", prefix)];
        node.sandbox.kube.create_namespace(&namespace, &annotation);
        let pod = node.sandbox.pod(&namespace, "web").await.expect("a pod");
        let answer = pod.secret("database-password").await.expect("an answer");
        let text = answer.text();
        assert!(
            [400, 403, 404].contains(&answer.status) && !text.contains(CANARY),
            "{prefix}: {} {text}",
            answer.status
        );
    }
    // To AWS a name is no path, but text in the body of a request.
    if backend.name != "aws" {
        for call in node.cloud.log() {
            assert!(!call.line.contains(".."), "{call:?}");
        }
    }
}

pub(super) async fn no_mix_up(backend: &Backend) {
    /// Different secrets, as equal reads of one pod would share a call.
    const NAMES: usize = 4;
    let Some(node) = backend
        .node_with(|settings| {
            settings
                .set("limits.requests_per_second_per_pod", 100_000)
                .set("limits.request_deadline", "40s")
                .set(&format!("backends.{}.timeout", backend.name), "20s")
        })
        .await
    else {
        return;
    };
    // For each name of each principal; where each is a run of programs, some hundreds in all.
    let reads = if backend.name == "pass" { 40 } else { 250 };
    let prod = node.sandbox.pod("prod", "web").await.expect("a pod");
    for namespace in ["test", "prod"] {
        for number in 0..NAMES {
            let value = format!("value of {namespace} number {number}");
            node.cloud
                .put(&format!("{namespace}/shared-{number}"), value.as_bytes());
        }
    }
    let (node, prod) = (&node, &prod);
    let floods = [("test", &node.pod), ("prod", prod)]
        .into_iter()
        .flat_map(|(namespace, pod)| {
            (0..NAMES).map(move |number| {
                pod.workload.flood(Flood {
                    path: format!("/v1/secrets/{namespace}/shared-{number}"),
                    connections: 1,
                    requests: reads,
                    reconnect: false,
                    interval_micros: 0,
                    expect: Some(format!("value of {namespace} number {number}")),
                })
            })
        });
    for flooded in join_all(floods).await {
        let flooded = flooded.expect("the pod lives");
        assert_eq!((flooded.wrong, flooded.failures), (0, 0), "{flooded:?}");
        assert_eq!(flooded.statuses.get(&200), Some(&reads), "{flooded:?}");
    }
}
