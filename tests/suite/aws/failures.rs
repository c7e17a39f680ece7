//! What the cloud's refusals and failures become for the caller, and what the agent forgets over them.

use super::{SECRET, exchanges, reads};
use crate::{REFUSAL_STANDS, code};
use std::time::{Duration, Instant};
use testkit::agent::AgentSettings;
use testkit::aws::{Behaviour, Fault, Operation, Special, read_policy, secret_arn, trust_policy};
use testkit::sandbox::{REGION, Sandbox};
use testkit::workload::{Request, Response};
use tokio::time::sleep;

#[tokio::test]
async fn a_role_that_does_not_trust_the_account_is_denied_and_no_other_role_is_named() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let own = sandbox.aws_namespace("test");
    let prod = sandbox.aws_namespace("prod");
    let provider = sandbox.aws_provider().to_owned();
    let trust = |subject: &str, audience: &str| trust_policy(&provider, subject, audience);
    let of = |name: &str| sandbox.aws.role_arn(name);
    for (role, subject, audience) in [
        (
            "bad-sub",
            "system:serviceaccount:prod:app",
            "sts.amazonaws.com",
        ),
        ("bad-aud", "system:serviceaccount:test:app", "somebody-else"),
    ] {
        let policy = read_policy(&[secret_arn("*", sandbox.aws.account(), "*")]);
        let spec = testkit::aws::RoleSpec::new(of(role), trust(subject, audience), policy);
        sandbox
            .aws
            .create_role(spec)
            .expect("the policies are well formed");
    }
    let _agent = sandbox.agent().await.expect("an agent");
    let cases = [
        (prod.clone(), "denied"),
        (of("bad-sub"), "denied"),
        (of("bad-aud"), "denied"),
        (of("nobody"), "denied"),
        ("arn:aws:iam::444455556666:role/foreign".into(), "denied"),
        ("test-app".into(), "no_role"),
        ("arn:aws:iam::1111:role/x".into(), "no_role"),
        ("arn:aws:iam::111122223333:user/x".into(), "no_role"),
        ("arn:aws:iam::111122223333:role/".into(), "no_role"),
        ("arn:gcp:iam::111122223333:role/x".into(), "no_role"),
    ];
    for (number, (role, word)) in cases.iter().enumerate() {
        let account = format!("app-{number}");
        let annotation = [("eks.amazonaws.com/role-arn", &**role)];
        let pod = sandbox.pod_as("test", &account, &annotation).await;
        let pod = pod.expect("a pod");
        let answer = pod
            .secret("prod/database-password")
            .await
            .expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (403, *word),
            "{role}: {}",
            answer.text()
        );
        for other in [&own, &prod].into_iter().filter(|other| *other != role) {
            assert!(
                !answer.text().contains(&**other),
                "{role}: {}",
                answer.text()
            );
        }
        assert!(
            !answer.text().contains("system:serviceaccount:prod"),
            "{}",
            answer.text()
        );
    }
    sandbox.aws.remove_oidc_provider(&provider);
    let pod = sandbox.pod("test", "late").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    assert!(reads(&sandbox).is_empty());
}

#[tokio::test]
async fn a_namespace_that_allows_no_tokens_is_denied() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.kube.forbid("create", "serviceaccounts/token");
    let _agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    assert!(sandbox.aws.calls().is_empty());
}

#[tokio::test]
async fn an_audience_is_honoured_only_where_the_operator_lists_it() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    let with = [
        ("eks.amazonaws.com/role-arn", &*role),
        ("eks.amazonaws.com/audience", "vault"),
    ];
    sandbox.kube.annotate_service_account("test", "app", &with);
    let agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "no_role");
    assert!(sandbox.kube.tokens().is_empty());
    drop(agent);
    let audiences = r#"["sts.amazonaws.com", "vault"]"#;
    let _agent = sandbox
        .agent_with(|settings| settings.set("backends.aws.audiences", audiences))
        .await
        .expect("an agent");
    let answer = pod.secret(SECRET).await.expect("an answer");
    // The fake's provider does not know it; the token was made out to it and to nobody else.
    answer.must_be_refused(403, "denied");
    assert_eq!(sandbox.kube.tokens()[0].audiences, ["vault"]);
}

#[tokio::test]
async fn a_refused_role_takes_its_cached_values_with_it() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    sandbox.aws_secret("test/kept", "kept");
    let cached = |s: testkit::agent::AgentSettings| {
        s.set("cache.ttl", "1h").set("cache.stale_if_error", "1h")
    };
    let _agent = sandbox.agent_with(cached).await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(
        pod.secret("test/kept").await.expect("an answer").status,
        200
    );
    sandbox.aws.revoke_role_sessions(&role);
    // Still from the cache; the next that asks the vault is refused, and nothing of the role is served after it.
    assert_eq!(
        pod.secret("test/kept").await.expect("an answer").status,
        200
    );
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 403);
    let answer = pod.secret("test/kept").await.expect("an answer");
    answer.must_be_refused(403, "denied");
}

#[tokio::test]
async fn each_answer_of_the_vault_has_its_own_code() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.aws_namespace("prod");
    sandbox.aws_secret("test/doomed", "x");
    assert!(sandbox.aws.mark_for_deletion(REGION, "test/doomed"));
    let agent = sandbox
        .agent_with(|s| s.set("backends.aws.timeout", "1s"))
        .await
        .expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    let ask = async |name: &str| -> Response { pod.secret(name).await.expect("an answer") };
    for (name, status, word) in [
        ("prod/database-password", 403, "denied"),
        ("test/missing", 404, "not_found"),
        ("test/doomed", 404, "not_found"),
    ] {
        let answer = ask(name).await;
        assert_eq!((answer.status, &*code(&answer)), (status, word), "{name}");
    }
    let faults = [
        (Behaviour::Special(Special::KmsDenied), 403, "denied", None),
        (
            Behaviour::Special(Special::DecryptionFailure),
            403,
            "denied",
            None,
        ),
        (Behaviour::Throttle(Some(7)), 429, "throttled", Some("7")),
        (Behaviour::Throttle(None), 429, "throttled", Some("1")),
        (Behaviour::InternalError, 503, "unavailable", Some("1")),
        (Behaviour::ServiceUnavailable, 503, "unavailable", Some("1")),
        (Behaviour::Html(200), 503, "unavailable", Some("1")),
        (Behaviour::TruncatedBody, 503, "unavailable", Some("1")),
        (Behaviour::CutBody, 503, "unavailable", Some("1")),
        (Behaviour::Endless, 503, "unavailable", Some("1")),
        (Behaviour::Disconnect, 503, "unavailable", Some("1")),
        (Behaviour::Hang, 503, "unavailable", Some("1")),
    ];
    for (behaviour, status, word, wait) in faults {
        let what = format!("{behaviour:?}");
        let _fault = sandbox
            .aws
            .fault(Fault::on(Operation::GetSecretValue, behaviour));
        let begun = Instant::now();
        let answer = ask(SECRET).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (status, word),
            "{what}: {}",
            answer.text()
        );
        assert_eq!(answer.header("retry-after"), wait, "{what}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{what}");
        assert!(!answer.text().contains("canary"), "{what}");
    }
    sandbox.aws.stop_listening().await;
    let answer = ask(SECRET).await;
    answer.must_be_refused(503, "unavailable");
    sandbox.aws.resume_listening().await.expect("it resumes");
    assert_eq!(ask(SECRET).await.status, 200);
    let line = agent
        .until_audit(|line| line["code"] == "throttled")
        .await
        .expect("its line");
    assert!(line["cloud_request_id"].is_string());
    drop(agent);

    // The token service fails in the same words.
    let _agent = sandbox
        .agent_with(|s| s.set("backends.aws.timeout", "1s"))
        .await
        .expect("an agent");
    for behaviour in [
        Behaviour::InternalError,
        Behaviour::Html(200),
        Behaviour::Endless,
        Behaviour::Hang,
        // Half an answer is enough for credentials that the vault does not know.
        Behaviour::TruncatedBody,
    ] {
        let what = format!("{behaviour:?}");
        let _fault = sandbox
            .aws
            .fault(Fault::on(Operation::AssumeRoleWithWebIdentity, behaviour));
        let answer = ask(SECRET).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (503, "unavailable"),
            "{what}"
        );
    }
    sleep(REFUSAL_STANDS).await;
    let throttle = Fault::on(
        Operation::AssumeRoleWithWebIdentity,
        Behaviour::Throttle(None),
    );
    let throttled = sandbox.aws.fault(throttle);
    assert_eq!(code(&ask(SECRET).await), "throttled");
    drop(throttled);
    // It has asked to slow down, so it is left alone for a while.
    assert_eq!(code(&ask(SECRET).await), "throttled");
    sleep(REFUSAL_STANDS).await;
    assert_eq!(ask(SECRET).await.status, 200);
}

#[tokio::test]
async fn the_deadline_of_the_request_ends_it_when_it_is_the_first_to_pass() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let _agent = sandbox
        .agent_with(|s| {
            s.set("limits.request_deadline", "1s")
                .set("limits.attest_wait", "1s")
                .set("backends.aws.timeout", "1s")
        })
        .await
        .expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let _fault = sandbox.aws.fault(Fault::everywhere(Behaviour::Hang));
    let begun = Instant::now();
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(504, "timeout");
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(3));
    assert!(exchanges(&sandbox).len() <= 1);
}

/// The SDK would have some hundred second tries for all together.
#[tokio::test]
async fn a_pod_whose_calls_fail_again_and_again_leaves_another_its_second_try() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox.aws_namespace("prod");
    let patient = |settings: AgentSettings| settings.set("limits.request_deadline", "60s");
    let agent = sandbox.agent_with(patient).await.expect("an agent");
    let unlucky = sandbox.pod("prod", "web").await.expect("a pod");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    let fails = || Fault::on(Operation::GetSecretValue, Behaviour::InternalError);
    let failing = sandbox.aws.fault(fails());
    let names: Vec<_> = (0..100).map(|number| format!("prod/{number}")).collect();
    let body = serde_json::json!({ "names": names }).to_string();
    for _ in 0..2 {
        let batch = Request::new("POST", "/v1/secrets:batchGet").body(body.clone());
        let answer = unlucky.request(batch).await.expect("an answer").json();
        assert_eq!(answer["errors"].as_array().map(Vec::len), Some(100));
    }
    drop(failing);
    for _ in 0..3 {
        let _once = sandbox.aws.fault(fails().times(1));
        assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    }
    // The SDK would log each failure as a fault of its own connections, which it has none of.
    assert!(
        !agent
            .stderr()
            .join("\n")
            .contains("no connection was found")
    );
}

#[tokio::test]
async fn what_aws_repeats_of_a_request_that_was_changed_on_its_way_is_in_no_log_and_no_answer() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let tampered = Behaviour::Special(Special::Tampered);
    let _fault = sandbox
        .aws
        .fault(Fault::on(Operation::GetSecretValue, tampered));
    let answer = pod.secret(SECRET).await.expect("an answer");
    let text = answer.text();
    assert_eq!(
        (answer.status, &*code(&answer)),
        (503, "unavailable"),
        "{text}"
    );
    assert!(text.contains("changed on its way"), "{text}");
    // The log has a writer of its own, which may be later than the answer.
    let line = agent.until_line("InvalidSignatureException: The request");
    line.await.expect("what AWS said is in the log");
    let said = agent.stderr().join("\n");
    for said in [text, said] {
        assert!(
            !said.contains("Canonical") && !said.contains("ecurity-token"),
            "{said}"
        );
    }
}
