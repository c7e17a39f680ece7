//! Where secrets are read: the role's partition, the annotations' region and prefix, and what is fallen back to.

use super::{SECRET, reads};
use crate::code;
use std::time::Duration;
use testkit::agent::AgentSettings;
use testkit::aws::{
    Behaviour, FakeAwsConfig, Fault, Operation, RoleSpec, SecretInput, provider_arn,
    read_and_list_policy, secret_arn, trust_policy,
};
use testkit::kube::FakeKubeConfig;
use testkit::sandbox::{ACCOUNT, REGION, Sandbox};
use testkit::workload::Response;

const FALLBACK: &str = "eu-west-1";

fn with_fallback(settings: AgentSettings) -> AgentSettings {
    settings
        .set("backends.aws.fallback_regions", format!("[{FALLBACK:?}]"))
        .set("backends.aws.timeout", "1s")
}

/// A sandbox whose vault lists one name at a time.
async fn sandbox_of_short_pages() -> Sandbox {
    let few = FakeAwsConfig {
        page_limit: 1,
        ..FakeAwsConfig::default()
    };
    let sandbox = Sandbox::with(FakeKubeConfig::default(), few).await;
    sandbox.expect("a sandbox")
}

#[tokio::test]
async fn another_region_is_asked_only_when_the_first_cannot_be_reached() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    sandbox
        .aws
        .put_secret(FALLBACK, SECRET, SecretInput::text("replica"));
    sandbox
        .aws
        .put_secret(FALLBACK, "test/only-there", SecretInput::text("x"));
    sandbox
        .aws
        .put_secret(FALLBACK, "prod/x", SecretInput::text("x"));
    let _agent = sandbox.agent_with(with_fallback).await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    for (name, status) in [(SECRET, 200), ("test/only-there", 404), ("prod/x", 403)] {
        assert_eq!(
            pod.secret(name).await.expect("an answer").status,
            status,
            "{name}"
        );
    }
    let throttled = sandbox.aws.fault(Fault::on(
        Operation::GetSecretValue,
        Behaviour::Throttle(None),
    ));
    assert_eq!(
        code(&pod.secret(SECRET).await.expect("an answer")),
        "throttled"
    );
    drop(throttled);
    assert!(
        reads(&sandbox)
            .iter()
            .all(|read| read.region.as_deref() == Some(REGION))
    );

    sandbox.aws.clear_calls();
    let down = sandbox
        .aws
        .fault(Fault::on(Operation::GetSecretValue, Behaviour::Hang).in_region(REGION));
    for _ in 0..3 {
        let answer = pod.secret(SECRET).await.expect("an answer");
        assert_eq!(
            (answer.status, answer.json()["value"].as_str()),
            (200, Some("replica"))
        );
    }
    let asked: Vec<_> = reads(&sandbox)
        .into_iter()
        .filter_map(|read| read.region)
        .collect();
    // The one that is down is asked once, and then not for a while.
    assert_eq!(
        asked.iter().filter(|region| *region == REGION).count(),
        1,
        "{asked:?}"
    );
    // What the replica does not have may yet be in the first, which alone can say that it is nowhere.
    sandbox
        .aws
        .put_secret(REGION, "test/new", SecretInput::text("x"));
    let unsure = pod.secret("test/new").await.expect("an answer");
    unsure.must_be_refused(503, "unavailable");
    drop(down);
    for (name, status) in [("test/new", 200), ("test/none", 404)] {
        assert_eq!(
            pod.secret(name).await.expect("an answer").status,
            status,
            "{name}"
        );
    }
    let down = sandbox
        .aws
        .fault(Fault::on(Operation::GetSecretValue, Behaviour::Hang).in_region(REGION));
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    // When the other one is down too, the first is asked after all.
    let both = sandbox
        .aws
        .fault(Fault::on(Operation::GetSecretValue, Behaviour::InternalError).in_region(FALLBACK));
    drop(down);
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(
        (answer.status, answer.json()["value"].as_str()),
        (200, Some(&*testkit::sandbox::password("test")))
    );
    drop(both);
}

#[tokio::test]
async fn a_region_that_the_role_may_not_use_takes_nothing_from_its_own() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let role = sandbox.aws_namespace("test");
    let subject = format!("system:serviceaccount:test:{ACCOUNT}");
    let own = read_and_list_policy(&[secret_arn(REGION, sandbox.aws.account(), "test/*")]);
    let trust = trust_policy(sandbox.aws_provider(), &subject, "sts.amazonaws.com");
    let spec = RoleSpec::new(role, trust, own);
    sandbox
        .aws
        .create_role(spec)
        .expect("the policies are well formed");
    let stale = |settings: AgentSettings| {
        with_fallback(settings)
            .set("cache.ttl", "1ms")
            .set("cache.stale_if_error", "1h")
    };
    let _agent = sandbox.agent_with(stale).await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    pod.secret(SECRET).await.expect("an answer").must_be_ok();
    // Its own region does not answer, once: the other's word is all there is, and nothing old is given out after it.
    let hang = Fault::on(Operation::GetSecretValue, Behaviour::Hang).in_region(REGION);
    let _once = sandbox.aws.fault(hang.times(1));
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    // It is asked last now, and asked all the same.
    pod.secret(SECRET).await.expect("an answer").must_be_ok();
    let asked: Vec<_> = reads(&sandbox)
        .into_iter()
        .filter_map(|read| read.region)
        .collect();
    assert_eq!(asked, [REGION, REGION, FALLBACK, FALLBACK, REGION]);
}

#[tokio::test]
async fn a_list_begins_where_it_can_be_reached_and_goes_on_there() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let expected = ["test/replica-0", "test/replica-1", "test/replica-2"];
    for name in expected {
        sandbox
            .aws
            .put_secret(FALLBACK, name, SecretInput::text("x"));
    }
    let _agent = sandbox.agent_with(with_fallback).await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let page = async |query: &str| {
        let answer = pod.get(&format!("/v1/secrets?{query}")).await;
        answer.expect("an answer")
    };
    let names = |page: &Response| {
        let names = page.json()["secrets"].clone();
        serde_json::from_value::<Vec<String>>(names).expect("names")
    };
    let down = sandbox
        .aws
        .fault(Fault::on(Operation::ListSecrets, Behaviour::Hang).in_region(REGION));
    let first = page("limit=2").await;
    first.must_be_ok();
    let cursor = first.json()["next"].as_str().expect("more").to_owned();
    // The first region is back, but it does not know that list.
    drop(down);
    let second = page(&format!("limit=2&cursor={cursor}")).await;
    second.must_be_ok();
    let mut all = [names(&first), names(&second)].concat();
    all.sort();
    assert_eq!(all, expected);
    // A list that has begun is not begun anew elsewhere.
    let gone = sandbox
        .aws
        .fault(Fault::on(Operation::ListSecrets, Behaviour::Hang).in_region(FALLBACK));
    let answer = page(&format!("limit=2&cursor={cursor}")).await;
    answer.must_be_refused(503, "unavailable");
    drop(gone);
    for cursor in ["elsewhere-1:x", "x"] {
        let answer = page(&format!("cursor={cursor}")).await;
        answer.must_be_refused(400, "invalid_request");
    }
}

#[tokio::test]
async fn a_long_list_that_nobody_waits_for_to_the_end_takes_no_region_from_reads() {
    needs_workloads!();
    let sandbox = sandbox_of_short_pages().await;
    sandbox.aws_namespace("test");
    for number in 0..20 {
        sandbox.aws_secret(&format!("test/{number}"), "x");
    }
    sandbox
        .aws
        .put_secret(FALLBACK, SECRET, SecretInput::text("replica"));
    let hasty = |settings: AgentSettings| {
        with_fallback(settings)
            .set("limits.attest_wait", "1s")
            .set("limits.request_deadline", "2s")
    };
    let _agent = sandbox.agent_with(hasty).await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    pod.secret(SECRET).await.expect("an answer").must_be_ok();
    // Each call by itself is answered soon.
    let slow = Behaviour::Delay(Duration::from_millis(250));
    let _slow = sandbox.aws.fault(Fault::on(Operation::ListSecrets, slow));
    let list = pod.get("/v1/secrets?limit=1000").await.expect("an answer");
    list.must_be_refused(504, "timeout");
    pod.secret(SECRET).await.expect("an answer").must_be_ok();
    let all_in_its_own = |read: &testkit::aws::Call| read.region.as_deref() == Some(REGION);
    assert!(reads(&sandbox).iter().all(all_in_its_own));
}

#[tokio::test]
async fn of_names_with_other_prefixes_the_vault_is_not_even_asked() {
    needs_workloads!();
    let sandbox = sandbox_of_short_pages().await;
    let role = sandbox.aws_namespace("test");
    let annotations = [
        ("eks.amazonaws.com/role-arn", &*role),
        ("latchkey.dev/prefix", "test/"),
    ];
    sandbox
        .kube
        .annotate_service_account("test", ACCOUNT, &annotations);
    for number in 0..30 {
        sandbox.aws_secret(&format!("a/{number}"), "x");
    }
    let _agent = sandbox.agent().await.expect("an agent");
    let pod = sandbox.pod("test", "web").await.expect("a pod");
    let page = pod.get("/v1/secrets").await.expect("an answer");
    let expected = serde_json::json!({"secrets": ["database-password"]});
    assert_eq!((page.status, page.json()), (200, expected));
    let lists = sandbox.aws.count_of(Operation::ListSecrets);
    assert_eq!(lists, 1);
}

#[tokio::test]
async fn the_roles_partition_says_where_it_is_used() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.kube.create_namespace("test", &[]);
    let issuer = sandbox.kube.issuer();
    let account = sandbox.aws.account().to_owned();
    let cases = [
        ("aws-us-gov", "us-gov-west-1", None),
        ("aws-us-gov", "us-gov-east-1", Some("us-gov-east-1")),
        ("aws-cn", "cn-north-1", None),
        ("aws", "us-west-2", Some("us-west-2")),
        ("aws", REGION, None),
    ];
    let _agent = sandbox.agent().await.expect("an agent");
    for (number, (partition, region, asked)) in cases.into_iter().enumerate() {
        let (name, provider) = (
            format!("app-{number}"),
            provider_arn(partition, &account, issuer.url()),
        );
        sandbox
            .aws
            .add_oidc_provider_at(&provider, &["sts.amazonaws.com"], &issuer.jwks());
        let arn = format!("arn:{partition}:iam::{account}:role/{name}");
        let subject = format!("system:serviceaccount:test:{name}");
        let resource = secret_arn(region, &account, "test/*");
        let spec = RoleSpec::new(
            &arn,
            trust_policy(&provider, &subject, "sts.amazonaws.com"),
            read_and_list_policy(&[resource]),
        );
        sandbox
            .aws
            .create_role(spec)
            .expect("the policies are well formed");
        sandbox
            .aws
            .put_secret(region, "test/x", SecretInput::text(region));
        let mut annotations = vec![("eks.amazonaws.com/role-arn", &*arn)];
        annotations.extend(asked.map(|region| ("latchkey.dev/aws-region", region)));
        let pod = sandbox.pod_as("test", &name, &annotations).await;
        let pod = pod.expect("a pod");
        let answer = pod.secret("test/x").await.expect("an answer");
        assert_eq!(
            (answer.status, answer.json()["value"].as_str()),
            (200, Some(region)),
            "{}",
            answer.text()
        );
    }
    let bad = [
        ("aws-us-gov", "eu-west-1"),
        ("aws", "cn-north-1"),
        ("aws", "evil.example/x-1"),
        ("aws", "nowhere"),
    ];
    for (number, (partition, region)) in bad.into_iter().enumerate() {
        let name = format!("bad-{number}");
        let arn = format!("arn:{partition}:iam::{account}:role/x");
        let annotations = [
            ("eks.amazonaws.com/role-arn", &*arn),
            ("latchkey.dev/aws-region", region),
        ];
        let pod = sandbox.pod_as("test", &name, &annotations).await;
        let pod = pod.expect("a pod");
        let answer = pod.secret("test/x").await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (403, "no_role"),
            "{region}"
        );
    }
}
