//! Several backends at once: one by default, the others by `?backend=`, and none in the others' way.

use crate::code;
use testkit::agent::free_address;
use testkit::clouds;
use testkit::clouds::Cloud as _;
use testkit::clouds::azure::Azure;
use testkit::sandbox::{Sandbox, password};
use testkit::workload::Request;

#[tokio::test]
async fn one_agent_serves_from_several_backends_and_one_that_is_away_is_in_nobodys_way() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let gcp = clouds::start("gcp", &sandbox).await.expect("a backend");
    let azure = Azure::start(&sandbox).await.expect("a backend");
    let nobody = format!("http://{}", free_address().expect("an address"));
    let mut settings = gcp.settings(sandbox.settings().expect("settings"));
    let keys: Vec<_> = settings.keys.clone().into_iter().collect();
    for (key, value) in keys {
        // The same again under other names: one with a prefix, and one where nobody listens.
        if let Some(key) = key.strip_prefix("backends.gcp.") {
            settings = settings.set(&format!("backends.team.{key}"), &value).set(
                &format!("backends.away.{key}"),
                if key.ends_with("endpoint") {
                    &nobody
                } else {
                    &value
                },
            );
        }
    }
    // All on one node: one by default, and the others beside it.
    settings = azure.settings(settings);
    let aws_keys = sandbox.settings().expect("settings").keys;
    for (key, value) in aws_keys
        .iter()
        .filter(|(key, _)| key.starts_with("backends.aws."))
    {
        settings = settings.set(key, value);
    }
    settings = settings
        .set("default_backend", "aws")
        .set("backends.team.type", "gcp")
        .set("backends.team.prefix", "team/")
        .set("backends.away.type", "gcp");
    let agent = settings.start_ready().await.expect("an agent");
    // All annotations on one account: each backend reads its own.
    gcp.namespace(&sandbox, "both");
    azure.namespace(&sandbox, "both");
    let client = azure.client_of("both").expect("it was made");
    let account = "both-app@acme-prod.iam.gserviceaccount.com";
    sandbox.kube.annotate_service_account(
        "both",
        "app",
        &[
            ("azure.workload.identity/client-id", &client),
            ("iam.gke.io/gcp-service-account", account),
            (
                "eks.amazonaws.com/role-arn",
                &sandbox.aws_role("both", "app", "both/*"),
            ),
        ],
    );
    sandbox.aws_secret("both/database-password", "from AWS");
    let pod = sandbox.pod("both", "web").await.expect("a pod");
    let ask = async |query: &str| {
        let answer = pod.secret(&format!("both/database-password{query}")).await;
        answer.expect("an answer")
    };
    for (query, value, backend) in [
        ("", "from AWS", "aws"),
        ("?backend=aws", "from AWS", "aws"),
        ("?backend=azure", &*password("both"), "azure"),
        ("?backend=gcp", &*password("both"), "gcp"),
    ] {
        let body = ask(query).await.json();
        assert_eq!(
            (&body["value"], &body["backend"]),
            (&value.into(), &backend.into()),
            "{body}"
        );
    }
    let batch = async |query: &str| {
        let path = format!("/v1/secrets:batchGet{query}");
        let request = Request::new("POST", &path).body(r#"{"names":["both/database-password"]}"#);
        pod.request(request).await.expect("an answer")
    };
    for (query, value, backend) in [
        ("", "from AWS", "aws"),
        ("?backend=azure", &*password("both"), "azure"),
        ("?backend=gcp", &*password("both"), "gcp"),
    ] {
        let body = batch(query).await.json();
        let secret = &body["secrets"][0];
        assert_eq!(
            (&secret["value"], &secret["backend"]),
            (&value.into(), &backend.into()),
            "{body}"
        );
    }
    // As a whole, and not each name.
    let unknown = batch("?backend=pass").await;
    unknown.must_be_refused(400, "invalid_request");
    let away = ask("?backend=away").await;
    assert_eq!(
        (away.status, &*code(&away)),
        (503, "unavailable"),
        "{}",
        away.text()
    );
    // `team/both/…` is outside of what the account may read: the prefix reached the vault.
    let team = ask("?backend=team").await;
    assert_eq!(
        (team.status, &*code(&team)),
        (403, "denied"),
        "{}",
        team.text()
    );
    assert!(
        gcp.log()
            .iter()
            .any(|call| call.line.contains("team--both--database-password"))
    );
    let unknown = ask("?backend=pass").await;
    unknown.must_be_refused(400, "invalid_request");
    let (status, _) = agent.admin("/readyz").await.expect("an answer");
    assert_eq!(status, 200);
    let identity = pod.get("/v1/identity").await.expect("an answer").json();
    assert_eq!(identity["roles"]["azure"], client);
    assert_eq!(identity["roles"]["gcp"], account);
    assert_eq!(identity["roles"]["aws"], sandbox.aws.role_arn("both-app"));
}
