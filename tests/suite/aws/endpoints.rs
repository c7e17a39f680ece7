//! The hosts of AWS itself, as the SDK knows them, by a proxy that speaks TLS with an authority of its own.

use super::{SECRET, exchanges};
use testkit::agent::{AgentProcess, AgentSettings};
use testkit::aws::SecretInput;
use testkit::egress::EgressProxy;
use testkit::sandbox::{ACCOUNT, REGION, Sandbox};

/// A cloud, the proxy before it, and an agent that knows neither's address but that of the proxy.
struct Way {
    sandbox: Sandbox,
    proxy: EgressProxy,
    _agent: AgentProcess,
}

impl Way {
    async fn new(region: &str, environment: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::start().await.expect("a sandbox");
        let proxy = EgressProxy::inspecting(sandbox.aws.address()).await;
        let proxy = proxy.expect("a proxy");
        let ca = proxy.ca_file(sandbox.directory()).expect("a file");
        // Whoever goes past the proxy finds nobody, on every machine.
        let hosts = sandbox.directory().join("hosts");
        let none = "127.0.0.1 localhost\n127.0.0.9 sts.eu-central-1.amazonaws.com\n";
        std::fs::write(&hosts, none).expect("a file");
        let change = |settings: AgentSettings| {
            let settings = settings
                .without("backends.aws")
                .set("backends.aws.type", "aws")
                .set("backends.aws.region", region)
                .with_hosts(&hosts)
                .env("HTTPS_PROXY", proxy.url())
                .env("SSL_CERT_FILE", ca.display());
            environment
                .iter()
                .fold(settings, |settings, (name, value)| {
                    settings.env(name, value)
                })
        };
        let agent = sandbox.agent_with(change).await.expect("an agent");
        Self {
            sandbox,
            proxy,
            _agent: agent,
        }
    }
}

#[tokio::test]
async fn token_service_and_vault_are_asked_by_their_own_names_through_the_proxy() {
    const FIPS: (&str, &str) = ("AWS_USE_FIPS_ENDPOINT", "true");
    const DUAL_STACK: (&str, &str) = ("AWS_USE_DUALSTACK_ENDPOINT", "true");
    needs_workloads!();
    // Those of the SDK's own rules. Secrets Manager has dual-stack addresses under the name that it has anyhow.
    let cases: [(_, &[_], _); 6] = [
        (
            REGION,
            &[],
            [
                "sts.eu-central-1.amazonaws.com",
                "secretsmanager.eu-central-1.amazonaws.com",
            ],
        ),
        (
            REGION,
            // As if they were not set.
            &[
                ("AWS_ENDPOINT_URL_STS", ""),
                ("AWS_ENDPOINT_URL_SECRETS_MANAGER", ""),
            ],
            [
                "sts.eu-central-1.amazonaws.com",
                "secretsmanager.eu-central-1.amazonaws.com",
            ],
        ),
        (
            "us-east-1",
            &[FIPS],
            [
                "sts-fips.us-east-1.amazonaws.com",
                "secretsmanager-fips.us-east-1.amazonaws.com",
            ],
        ),
        (
            REGION,
            &[DUAL_STACK],
            [
                "sts.eu-central-1.api.aws",
                "secretsmanager.eu-central-1.amazonaws.com",
            ],
        ),
        (
            "us-east-1",
            &[FIPS, DUAL_STACK],
            [
                "sts-fips.us-east-1.api.aws",
                "secretsmanager-fips.us-east-1.amazonaws.com",
            ],
        ),
        (
            "us-west-2",
            &[],
            [
                "sts.us-west-2.amazonaws.com",
                "secretsmanager.us-west-2.amazonaws.com",
            ],
        ),
    ];
    for (region, environment, hosts) in cases {
        let way = Way::new(region, environment).await;
        way.sandbox.aws_namespace("test");
        let text = SecretInput::text("by the proxy");
        way.sandbox.aws.put_secret(region, SECRET, text);
        let pod = way.sandbox.pod("test", "web").await.expect("a pod");
        let answer = pod.secret(SECRET).await.expect("an answer");
        assert_eq!(
            (answer.status, answer.json()["value"].as_str()),
            (200, Some("by the proxy")),
            "{region} {environment:?}: {} {:?}",
            answer.text(),
            way.proxy.asked()
        );
        assert_eq!(way.proxy.asked(), hosts.map(|host| format!("{host}:443")));
    }
}

#[tokio::test]
async fn an_account_that_is_annotated_so_is_sent_to_the_global_token_service_where_it_serves() {
    needs_workloads!();
    // There is no other for FIPS or dual-stack, and where accounts have to enable the region none that it believes.
    let cases: [(_, &[_], _); 4] = [
        (REGION, &[], "sts.amazonaws.com"),
        ("af-south-1", &[], "sts.af-south-1.amazonaws.com"),
        (
            "us-east-1",
            &[("AWS_USE_FIPS_ENDPOINT", "true")],
            "sts-fips.us-east-1.amazonaws.com",
        ),
        (
            REGION,
            &[("AWS_USE_DUALSTACK_ENDPOINT", "true")],
            "sts.eu-central-1.api.aws",
        ),
    ];
    for (region, environment, host) in cases {
        let way = Way::new(region, environment).await;
        let sandbox = &way.sandbox;
        let role = sandbox.aws_namespace("test");
        let annotations = [
            ("eks.amazonaws.com/role-arn", &*role),
            ("eks.amazonaws.com/sts-regional-endpoints", "false"),
        ];
        sandbox
            .kube
            .annotate_service_account("test", ACCOUNT, &annotations);
        let pod = sandbox.pod("test", "web").await.expect("a pod");
        // What the vault says does not matter.
        pod.secret(SECRET).await.expect("an answer");
        assert_eq!(way.proxy.asked()[0], format!("{host}:443"));
    }
}

#[tokio::test]
async fn a_server_that_no_trusted_authority_vouches_for_gets_no_token() {
    needs_workloads!();
    let other = tempfile::tempdir().expect("a directory");
    let elsewhere = EgressProxy::inspecting(([127, 0, 0, 1], 9).into()).await;
    let ca = elsewhere.expect("a proxy").ca_file(other.path());
    let ca = ca.expect("a file").display().to_string();
    let way = Way::new(REGION, &[("SSL_CERT_FILE", &ca)]).await;
    way.sandbox.aws_namespace("test");
    let pod = way.sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    assert_eq!(way.proxy.asked(), ["sts.eu-central-1.amazonaws.com:443"]);
    assert_eq!(exchanges(&way.sandbox).len(), 0);
}

#[tokio::test]
async fn hosts_of_no_proxy_are_not_asked_through_it() {
    needs_workloads!();
    let way = Way::new(
        REGION,
        &[("NO_PROXY", "sts.eu-central-1.amazonaws.com,127.0.0.1")],
    )
    .await;
    way.sandbox.aws_namespace("test");
    let pod = way.sandbox.pod("test", "web").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    assert_eq!(way.proxy.asked(), [""; 0]);
}
