//! Sessions: begun with a token of the pod's own, shared by its requests, renewed, ended, and never another's.

use super::{SECRET, exchanges, reads};
use futures::future::join_all;
use std::collections::HashSet;
use std::time::Duration;
use testkit::aws::{
    Behaviour, Call, Fault, Operation, RoleSpec, read_and_list_policy, secret_arn, trust_policy,
};
use testkit::sandbox::{Sandbox, password};
use testkit::until;
use testkit::workload::Flood;
use tokio::time::sleep;

#[tokio::test]
async fn a_session_is_named_after_the_pod_and_begun_with_its_own_short_token() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let long = format!("n{}", "a".repeat(40));
    sandbox.aws_namespace("test");
    sandbox.aws_namespace(&long);
    let _agent = sandbox.agent().await.expect("an agent");
    for namespace in ["test", &long] {
        sandbox.aws.clear_calls();
        let pod = sandbox.pod(namespace, "web").await.expect("a pod");
        let answer = pod
            .secret(&format!("{namespace}/database-password"))
            .await
            .expect("an answer");
        answer.must_be_ok();
        let [exchange] = &exchanges(&sandbox)[..] else {
            panic!("one exchange")
        };
        let uid = pod.object.uid();
        let mut name = format!("{}.{namespace}.app", uid.replace('-', ""));
        name.truncate(64);
        assert_eq!(exchange.session_name.as_deref(), Some(&*name));
        let token = exchange.token.as_ref().expect("a token");
        assert_eq!(token.sub, format!("system:serviceaccount:{namespace}:app"));
        assert_eq!(token.aud, ["sts.amazonaws.com"]);
        assert_eq!(token.pod, Some(("web".into(), uid.into())));
        assert!(token.exp - exchange.at.as_second() <= 600);
        let asked = sandbox.kube.tokens().pop().expect("a token request");
        assert_eq!(
            (asked.expiration_seconds, asked.pod),
            (Some(600), Some(("web".into(), uid.into())))
        );
        assert_eq!(reads(&sandbox)[0].session_name.as_deref(), Some(&*name));
    }
}

#[tokio::test]
async fn many_requests_at_once_share_one_exchange() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    for number in 0..20 {
        sandbox.aws_secret(&format!("test/{number}"), "x");
    }
    let _agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    // A pod that the agent does not know yet may have few connections; this one is known then.
    assert_eq!(
        pod.get("/v1/identity").await.expect("an answer").status,
        200
    );
    let (gate, _held) = sandbox.aws.hold(Operation::AssumeRoleWithWebIdentity);
    let names: Vec<_> = (0..20).map(|number| format!("test/{number}")).collect();
    let asked = join_all(names.iter().map(|name| pod.secret(name)));
    let opened = async {
        gate.reached(1).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asked, opened);
    for answer in answers {
        assert_eq!(answer.expect("an answer").status, 200);
    }
    assert_eq!(exchanges(&sandbox).len(), 1);
    assert_eq!(sandbox.kube.tokens().len(), 1);
}

#[tokio::test]
async fn a_session_in_use_is_renewed_behind_the_answers_with_a_fresh_token() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = short_role(&sandbox, 24);
    let _agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let begun = tokio::time::Instant::now();
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    // The renewal hangs: nobody waits for it while the session at hand is good.
    let (gate, held) = sandbox.aws.hold(Operation::AssumeRoleWithWebIdentity);
    let renewing = gate.reached(1);
    tokio::pin!(renewing);
    loop {
        let answer = tokio::select! {
            () = &mut renewing => break,
            answer = pod.secret(SECRET) => answer.expect("an answer"),
        };
        answer.must_be_ok();
        assert!(
            begun.elapsed() < Duration::from_secs(24),
            "it was not renewed in time"
        );
    }
    assert!(
        begun.elapsed() >= Duration::from_secs(12),
        "renewed at {:?}",
        begun.elapsed()
    );
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_ok();
    gate.open();
    drop(held);
    let renewed =
        |call: &testkit::aws::Call| call.operation == Operation::AssumeRoleWithWebIdentity;
    assert!(sandbox.aws.called(2, Duration::from_secs(5), renewed).await);
    let tokens: Vec<_> = sandbox
        .kube
        .tokens()
        .into_iter()
        .filter_map(|asked| asked.token)
        .collect();
    assert_eq!(tokens.len(), exchanges(&sandbox).len());
    assert_eq!(
        tokens.iter().collect::<HashSet<_>>().len(),
        tokens.len(),
        "a token was used twice"
    );
    assert_eq!(exchanges(&sandbox)[1].role.as_deref(), Some(&*role));
}

/// The namespace `test`, whose role's sessions end after so many seconds.
fn short_role(sandbox: &Sandbox, seconds: u32) -> String {
    let arn = sandbox.aws_namespace("test");
    let subject = "system:serviceaccount:test:app";
    let spec = RoleSpec::new(
        &arn,
        trust_policy(sandbox.aws_provider(), subject, "sts.amazonaws.com"),
        read_and_list_policy(&[secret_arn("*", sandbox.aws.account(), "test/*")]),
    );
    let spec = RoleSpec {
        sessions_end_after: Some(seconds),
        ..spec
    };
    sandbox
        .aws
        .create_role(spec)
        .expect("the policies are well formed");
    arn
}

#[tokio::test]
async fn a_session_that_ended_before_its_time_is_replaced_once_and_the_read_succeeds() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    let _agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    assert_eq!(sandbox.aws.expire_role_sessions(&role), 1);
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(
        (answer.status, answer.json()["value"].as_str()),
        (200, Some(&*password("test")))
    );
    assert_eq!(exchanges(&sandbox).len(), 2);
    // A list too.
    assert_eq!(sandbox.aws.expire_role_sessions(&role), 1);
    assert_eq!(pod.get("/v1/secrets").await.expect("an answer").status, 200);
}

/// No read fails for it before the session ends, so nothing else would say so.
#[tokio::test]
async fn a_renewal_that_fails_is_said_with_its_cause() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    // Time to renew it is between 12 and 14 seconds.
    short_role(&sandbox, 16);
    let agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    pod.secret(SECRET).await.expect("an answer").must_be_ok();
    let operation = Operation::AssumeRoleWithWebIdentity;
    let _fault = sandbox
        .aws
        .fault(Fault::on(operation, Behaviour::InternalError));
    let said = agent.until_line("cannot renew a session");
    let reads = async {
        loop {
            pod.secret(SECRET).await.expect("an answer");
            sleep(Duration::from_millis(100)).await;
        }
    };
    let line = tokio::select! {
        line = said => line.expect("it says so"),
        () = reads => unreachable!("without end"),
    };
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    for (field, value) in [
        ("level", "WARN"),
        ("backend", "aws"),
        ("namespace", "test"),
        ("pod", "web"),
        ("code", "unavailable"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(
        line["error"].is_string() && line["cause"].is_string(),
        "{line}"
    );
}

#[tokio::test]
async fn a_pod_that_is_gone_leaves_no_session() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    let sessions = async |wanted: f64| {
        let shown = async || {
            agent
                .metric("latchkey_sessions{backend=\"aws\"}")
                .await
                .expect("metrics")
        };
        until("as many sessions", async || shown().await == wanted).await;
    };
    sessions(1.0).await;
    pod.object.delete();
    sessions(0.0).await;
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "not_attested");
}

#[tokio::test]
async fn two_principals_asking_for_the_same_name_at_once_get_each_their_own() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    // The same name at the application, another secret by each account's prefix.
    for namespace in ["red", "blue"] {
        let role = sandbox.aws_namespace(namespace);
        let annotations = [
            ("eks.amazonaws.com/role-arn", &*role),
            ("latchkey.dev/prefix", &*format!("{namespace}/")),
        ];
        sandbox
            .kube
            .annotate_service_account(namespace, "app", &annotations);
    }
    let cached = |s: testkit::agent::AgentSettings| {
        s.set("cache.ttl", "50ms")
            .set("limits.requests_per_second_per_pod", 100_000)
    };
    let _agent = sandbox.agent_with(cached).await.expect("an agent");
    let red = sandbox.pod("red", "web").await.expect("a pod");
    let blue = sandbox.pod("blue", "web").await.expect("a pod");
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
    let mixed = |call: &testkit::aws::Call| {
        let side = |text: &Option<String>| text.as_deref().unwrap_or_default().contains("red");
        call.operation == Operation::GetSecretValue && side(&call.secret) != side(&call.role)
    };
    assert_eq!(sandbox.aws.count_calls(mixed), 0);
}

#[tokio::test]
async fn a_pod_of_the_same_account_has_its_own_session() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let _agent = sandbox.agent().await.expect("an agent");
    for name in ["one", "two"] {
        let pod = sandbox.pod("test", name).await.expect("a pod");
        assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    }
    let keys: HashSet<_> = reads(&sandbox)
        .into_iter()
        .map(|read| read.access_key)
        .collect();
    assert_eq!((exchanges(&sandbox).len(), keys.len()), (2, 2));
}

#[tokio::test]
async fn pods_that_read_at_the_same_time_each_sign_with_their_own_session() {
    const ROUNDS: usize = 8;
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let namespaces = ["test", "prod"];
    for namespace in namespaces {
        sandbox.aws_namespace(namespace);
    }
    let _agent = sandbox.agent().await.expect("an agent");
    let mut pods = Vec::new();
    for (namespace, name) in [("test", "a"), ("prod", "b"), ("test", "c"), ("prod", "d")] {
        let pod = sandbox.pod(namespace, name).await.expect("a pod");
        pods.push((namespace, pod));
    }
    for _ in 0..ROUNDS {
        let asks = pods.iter().flat_map(|(own, pod)| {
            namespaces.map(|namespace| async move {
                let name = format!("{namespace}/database-password");
                let answer = pod.secret(&name).await.expect("an answer");
                if namespace == *own {
                    let value = answer.json()["value"].clone();
                    assert_eq!((answer.status, value), (200, password(own).into()));
                } else {
                    answer.must_be_refused(403, "denied");
                }
            })
        });
        join_all(asks).await;
    }
    let (exchanges, reads) = (exchanges(&sandbox), reads(&sandbox));
    assert_eq!(exchanges.len(), pods.len());
    for (_, pod) in &pods {
        let session = pod.object.uid().replace('-', "");
        let of_pod = |call: &&Call| {
            let name = call.session_name.as_ref();
            name.is_some_and(|name| name.starts_with(&session))
        };
        let given = exchanges.iter().find(of_pod).expect("its exchange");
        let signed: Vec<_> = reads.iter().filter(of_pod).collect();
        assert_eq!(signed.len(), ROUNDS * namespaces.len());
        assert!(
            signed
                .iter()
                .all(|read| read.access_key == given.access_key)
        );
    }
}
