//! A pod's own client, its own token, and whose name is in the cloud's log.

use super::{Node, SECRET, WRITTEN};
use crate::code;
use std::collections::HashSet;
use testkit::azure::{Operation, SecretSpec};
use testkit::clouds::azure::{TENANT, VAULT};
use testkit::sandbox::password;
use testkit::workload::Flood;

#[tokio::test]
async fn a_pod_reads_with_its_own_client_and_the_clouds_log_names_pod_and_request() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    let agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_ok();
    let body = answer.json();
    assert_eq!(body["value"], password("test"));
    assert_eq!(body["backend"], "azure");
    assert_eq!(body["version"].as_str().map(str::len), Some(32));

    let exchanges = node.exchanges();
    assert_eq!(exchanges.len(), 1);
    let token = exchanges[0].token.as_ref().expect("an assertion");
    assert_eq!(exchanges[0].tenant.as_deref(), Some(TENANT));
    assert_eq!(exchanges[0].client.as_deref(), Some(&*client));
    assert_eq!(token.sub, "system:serviceaccount:test:app");
    assert_eq!(token.aud, ["api://AzureADTokenExchange"]);
    let uid = pod.object.uid().to_owned();
    assert_eq!(token.pod, Some(("web".into(), uid.clone())));

    // A new session is challenged once, and reads then.
    let reads = node.azure.calls_of(Operation::GetSecret);
    let seen: Vec<_> = reads
        .iter()
        .map(|call| (call.with_token, call.succeeded()))
        .collect();
    assert_eq!(seen, [(false, false), (true, true)]);
    assert_eq!(reads[1].client.as_deref(), Some(&*client));
    assert_eq!(reads[1].secret.as_deref(), Some(WRITTEN));

    let line = agent
        .until_audit(|line| line["secret"] == SECRET)
        .await
        .expect("its line");
    assert_eq!(line["role"], client);
    assert_eq!(
        line["cloud_request_id"].as_str(),
        reads[1].correlation_id.as_deref()
    );
    let request = line["request_id"].as_str().expect("an id");
    let digits: String = request.chars().filter(|c| *c != '-').collect();
    let correlation = reads[1].correlation_id.clone().expect("an id");
    assert!(
        correlation.replace('-', "").starts_with(&digits),
        "{correlation}"
    );
    assert_eq!(exchanges[0].correlation_id, reads[1].correlation_id);
    for call in exchanges.iter().chain(&reads) {
        let agent = &call.user_agent;
        assert!(
            agent.contains(&uid.replace('-', "")) && agent.contains(request),
            "{agent}"
        );
    }

    // The same session reads on, unchallenged.
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    assert_eq!(node.azure.calls().len(), 4);
}

#[tokio::test]
async fn a_pod_is_refused_the_secret_of_another_namespace_by_the_vault_itself() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.namespace("prod");
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod
        .secret("prod/database-password")
        .await
        .expect("an answer");
    answer.must_be_refused(403, "denied");
    assert!(answer.text().contains(&client), "{}", answer.text());
    let refused = node.with_token();
    assert_eq!(refused[0].error.as_deref(), Some("ForbiddenByRbac"));
}

#[tokio::test]
async fn two_principals_at_once_a_thousand_times_get_each_their_own() {
    needs_workloads!();
    let node = Node::start().await;
    // The same name at the application, another secret by each account's prefix.
    let mut clients = Vec::new();
    for namespace in ["red", "blue"] {
        let client = node.namespace(namespace);
        let annotations = [
            ("azure.workload.identity/client-id", &*client),
            ("latchkey.dev/prefix", &*format!("{namespace}/")),
        ];
        node.sandbox
            .kube
            .annotate_service_account(namespace, "app", &annotations);
        clients.push(client);
    }
    let cached = |s: testkit::agent::AgentSettings| {
        s.set("cache.ttl", "50ms")
            .set("limits.requests_per_second_per_pod", 100_000)
    };
    let _agent = node.agent_with(cached).await;
    let red = node.sandbox.pod("red", "web").await.expect("a pod");
    let blue = node.sandbox.pod("blue", "web").await.expect("a pod");
    for pod in [&red, &blue] {
        // A pod that the agent does not know yet may have few connections; these are known then.
        assert_eq!(
            pod.get("/v1/identity").await.expect("an answer").status,
            200
        );
    }
    let flood = |namespace: &str| Flood {
        path: "/v1/secrets/database-password".into(),
        connections: 10,
        requests: 50,
        reconnect: false,
        interval_micros: 0,
        expect: Some(password(namespace)),
    };
    let (reds, blues) = tokio::join!(
        red.workload.flood(flood("red")),
        blue.workload.flood(flood("blue"))
    );
    for flooded in [reds.expect("answers"), blues.expect("answers")] {
        assert_eq!(
            (flooded.count(200), flooded.wrong, flooded.failures),
            (500, 0, 0),
            "{:?}",
            flooded.statuses
        );
    }
    for call in node.with_token() {
        let is_red = call
            .secret
            .as_deref()
            .is_some_and(|name| name.starts_with("red--"));
        let client = &clients[usize::from(!is_red)];
        assert_eq!(call.client.as_ref(), Some(client), "{call:?}");
    }
    assert!(node.exchanges().len() >= 2);
}

#[tokio::test]
async fn a_pod_of_the_same_account_has_its_own_session() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let _agent = node.agent().await;
    for name in ["one", "two"] {
        let pod = node.sandbox.pod("test", name).await.expect("a pod");
        assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    }
    let tokens: HashSet<_> = node.azure.access_tokens().into_iter().collect();
    assert_eq!((node.exchanges().len(), tokens.len()), (2, 2));
}

#[tokio::test]
async fn a_session_that_ended_before_its_time_is_replaced_once_and_the_read_succeeds() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.azure.admit(VAULT, &client, None);
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    node.azure.revoke_tokens(&client);
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_ok();
    assert_eq!(node.exchanges().len(), 2);
    // A list too.
    node.azure.revoke_tokens(&client);
    let answer = pod.get("/v1/secrets").await.expect("an answer");
    answer.must_be_ok();
    assert_eq!(node.exchanges().len(), 3);
    // Each with a subject token of its own.
    assert_eq!(node.sandbox.kube.tokens().len(), 3);
}

#[tokio::test]
async fn a_session_is_renewed_while_its_access_token_is_still_good() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    let mut app = node.tenant.app(&client, "test", "app");
    app.token_seconds = 12;
    node.azure.put_app(TENANT, app);
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let begun = tokio::time::Instant::now();
    while node.exchanges().len() < 2 {
        let answer = pod.secret(SECRET).await.expect("an answer");
        answer.must_be_ok();
        let took = begun.elapsed();
        assert!(took.as_secs() < 12, "it was not renewed in time: {took:?}");
    }
    assert!(begun.elapsed().as_secs() >= 6, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_may_read_no_more_loses_its_session_and_cached_values() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    node.secret(&client, "test--kept", "kept");
    let cached = |s: testkit::agent::AgentSettings| {
        s.set("cache.ttl", "1h").set("cache.stale_if_error", "1h")
    };
    let _agent = node.agent_with(cached).await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(
        pod.secret("test/kept").await.expect("an answer").status,
        200
    );
    node.azure.expel(VAULT, &client);
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 403);
    let answer = pod.secret("test/kept").await.expect("an answer");
    answer.must_be_refused(403, "denied");
}

#[tokio::test]
async fn a_rotated_secret_is_read_at_once_and_its_old_version_by_its_id() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    let _agent = node.agent().await;
    let pod = node.sandbox.pod("test", "web").await.expect("a pod");
    let old = node.secret(&client, "test--key", "old");
    let read = async |path: &str| {
        let answer = pod.get(path).await.expect("an answer");
        answer.must_be_ok();
        answer.json()["value"].as_str().map(str::to_owned)
    };
    assert_eq!(read("/v1/secrets/test/key").await.as_deref(), Some("old"));
    node.azure
        .put_secret(VAULT, "test--key", SecretSpec::text("new"));
    assert_eq!(read("/v1/secrets/test/key").await.as_deref(), Some("new"));
    let path = format!("/v1/secrets/test/key?version={old}");
    assert_eq!(read(&path).await.as_deref(), Some("old"));
    let calls = node.azure.calls().len();
    for wrong in ["version=latest", "version=1", "stage=AWSPREVIOUS"] {
        let path = format!("/v1/secrets/test/key?{wrong}");
        let answer = pod.get(&path).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{wrong}"
        );
    }
    assert_eq!(node.azure.calls().len(), calls);
}
