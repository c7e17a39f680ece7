//! `latchkey doctor`: the right cause, with what to do, and never a wrong one.

mod machine;
mod socket;

use super::{Client, Ended, command_in, ended};
use crate::{REFUSAL_STANDS, sandbox_with_a_pod};
use serde_json::Value;
use testkit::agent::AgentSettings;
use testkit::aws::{
    Behaviour, Fault, Operation, RoleSpec, SecretInput, read_policy, secret_arn, trust_policy,
};
use testkit::kube::PodSpec;
use testkit::sandbox::{ACCOUNT, CANARY, Sandbox, SandboxPod, container_id};
use testkit::workload::Workload;
use tokio::process::Command;
use tokio::time::sleep;

const SECRET: &str = "test/database-password";

/// What it found: the step and cause of the one thing that fails, and the words about it.
#[derive(Debug)]
struct Found {
    step: String,
    cause: String,
    text: String,
    code: Option<i32>,
    report: Value,
}

impl Found {
    #[track_caller]
    fn of(ended: &Ended) -> Self {
        let report: Value =
            serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
        let fails: Vec<&Value> = report["findings"]
            .as_array()
            .expect("findings")
            .iter()
            .filter(|finding| finding["verdict"] == "fail")
            .collect();
        let [fail] = fails[..] else {
            panic!("not one cause: {report:#}");
        };
        assert_eq!(report["healthy"], false);
        assert_ne!(ended.code, Some(0), "{report:#}");
        assert!(!ended.stdout.contains(CANARY), "{report:#}");
        let word = |key: &str| fail[key].as_str().unwrap_or_default().to_owned();
        Self {
            step: word("step"),
            cause: word("cause"),
            text: word("text"),
            code: ended.code,
            report,
        }
    }

    /// Whether it is that cause, in words that hold each of these.
    #[track_caller]
    fn is(&self, step: &str, cause: &str, words: &[&str]) {
        assert_eq!(
            (&*self.step, &*self.cause),
            (step, cause),
            "{:#}",
            self.report
        );
        for word in words {
            assert!(self.text.contains(word), "{word} is not in {}", self.text);
        }
    }

    /// Whether something is noted with that cause.
    #[track_caller]
    fn notes(report: &Value, cause: &str) {
        let findings = report["findings"].as_array().expect("findings");
        let noted = findings.iter().any(|finding| finding["cause"] == cause);
        assert!(noted, "{report:#}");
    }
}

async fn found(command: Command) -> Found {
    Found::of(&ended(command).await)
}

/// A pod with a service account of its own.
async fn pod_of(sandbox: &Sandbox, account: &str, annotations: &[(&str, &str)]) -> SandboxPod {
    let pod = sandbox.pod_as("test", account, annotations).await;
    pod.expect("a pod")
}

const ROLE: &str = "eks.amazonaws.com/role-arn";

#[tokio::test]
async fn where_nothing_is_wrong_it_says_so_and_shows_no_value() {
    needs_workloads!();
    let client = Client::start().await;
    for arguments in [&["doctor", SECRET][..], &["doctor"]] {
        let ended = client.run(arguments).await;
        let text = ended.printed();
        for step in [
            "socket",
            "agent",
            "attestation",
            "role",
            "exchange",
            "secret",
        ] {
            let good = text
                .lines()
                .any(|line| line.starts_with("ok") && line.contains(step));
            assert!(good, "{step}: {text}");
        }
        assert!(!text.contains(CANARY) && !text.contains('\u{1b}'), "{text}");
    }
    found(client.command(&["doctor", "--json", "--backend", "none", SECRET]))
        .await
        .is("role", "no_such_backend", &["it has aws"]);
}

#[tokio::test]
async fn an_agent_that_is_not_ready_is_told_with_what_it_waits_for() {
    needs_workloads!();
    let (sandbox, pod) = sandbox_with_a_pod().await;
    sandbox.kube.stop_listening().await;
    let agent = sandbox
        .settings()
        .expect("settings")
        .start()
        .await
        .expect("a process");
    agent.until_served().await.expect("pods find somebody");
    let doctor = command_in(&pod, &sandbox.socket(), &["doctor", "--json"]);
    let told = found(doctor).await;
    told.is("agent", "agent_not_ready", &["pods"]);
    assert_eq!(told.code, Some(5));
}

#[tokio::test]
async fn an_exempt_container_is_led_to_its_pod_and_not_to_the_account() {
    needs_workloads!();
    let client = Client::start().await;
    let spec = PodSpec {
        annotations: vec![("eks.amazonaws.com/skip-containers".into(), "app".into())],
        ..PodSpec::of("test", "exempt", ACCOUNT)
    };
    let pod = client.sandbox.pod_of(spec).await.expect("a pod");
    let doctor = ["doctor", "--json", SECRET];
    let told = found(command_in(&pod, &client.sandbox.socket(), &doctor)).await;
    told.is("role", "exempt_container", &["skip-containers"]);
    let next = told.report.to_string();
    assert!(next.contains("kubectl -n test get pod exempt "), "{next}");
    assert!(!next.contains("serviceaccount"), "{next}");
}

#[tokio::test]
async fn what_is_wrong_with_account_role_trust_and_policy_is_told_apart() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let own = sandbox.aws_namespace("test");
    sandbox.aws_namespace("prod");
    let audiences = r#"["sts.amazonaws.com", "vault"]"#;
    let _agent = sandbox
        .agent_with(|settings| settings.set("backends.aws.audiences", audiences))
        .await
        .expect("an agent");
    let role = |name: &str, subject: &str, audience: &str| {
        let everything = read_policy(&[secret_arn("*", sandbox.aws.account(), "*")]);
        let trust = trust_policy(sandbox.aws_provider(), subject, audience);
        let arn = sandbox.aws.role_arn(name);
        let spec = RoleSpec::new(&arn, trust, everything);
        sandbox
            .aws
            .create_role(spec)
            .expect("the policies are well formed");
        arn
    };
    let of = |account: &str| format!("system:serviceaccount:test:{account}");
    let other_sub = role("other-sub", &of("somebody-else"), "sts.amazonaws.com");
    let other_aud = role("other-aud", &of("other-aud"), "somebody-else");
    let right = role("right", &of("right"), "sts.amazonaws.com");
    let elsewhere = role("elsewhere", &of("elsewhere"), "sts.amazonaws.com");
    let vault = role("vault", &of("vault"), "vault");
    let narrow = sandbox.aws_role("test", "narrow", "test/only-this");
    let socket = sandbox.socket();
    let doctor = async |pod: &SandboxPod, name: &str| {
        found(command_in(pod, &socket, &["doctor", "--json", name])).await
    };

    let pod = pod_of(&sandbox, "bare", &[]).await;
    doctor(&pod, SECRET)
        .await
        .is("role", "no_role", &["names no AWS role", "annotate"]);
    let pod = pod_of(&sandbox, "malformed", &[(ROLE, "test-app")]).await;
    let told = doctor(&pod, SECRET).await;
    told.is("role", "wrong_role", &["no ARN of an IAM role", "test-app"]);
    let next = told.report.to_string();
    assert!(
        next.contains("kubectl get namespace test -o yaml"),
        "{next}"
    );
    let pod = pod_of(&sandbox, "other-sub-pod", &[(ROLE, &other_sub)]).await;
    let told = doctor(&pod, SECRET).await;
    told.is("exchange", "role_refused", &["trust policy", "sub"]);
    let next = told.report.to_string();
    assert!(
        next.contains("system:serviceaccount:test:other-sub-pod"),
        "{next}"
    );
    assert!(
        next.contains("aws iam get-role --role-name other-sub "),
        "{next}"
    );
    let pod = pod_of(&sandbox, "other-aud", &[(ROLE, &other_aud)]).await;
    doctor(&pod, SECRET).await.is(
        "exchange",
        "role_refused",
        &["trust policy", "aud, which is sts.amazonaws.com"],
    );
    let with = [(ROLE, &*vault), ("eks.amazonaws.com/audience", "vault")];
    let pod = pod_of(&sandbox, "vault", &with).await;
    doctor(&pod, SECRET).await.is(
        "exchange",
        "role_refused",
        &["does not list vault among its client ids"],
    );
    let pod = pod_of(&sandbox, "narrow", &[(ROLE, &narrow)]).await;
    let told = doctor(&pod, "test/other").await;
    told.is("secret", "secret_refused", &["check its policy"]);
    let next = told.report.to_string();
    assert!(next.contains("test/other --query KmsKeyId"), "{next}");
    let pod = pod_of(&sandbox, "right", &[(ROLE, &right)]).await;
    doctor(&pod, "test/none").await.is(
        "secret",
        "no_such_secret",
        &["no such secret", "eu-central-1"],
    );
    let with = [
        (ROLE, &*elsewhere),
        ("latchkey.dev/aws-region", "us-west-2"),
    ];
    let pod = pod_of(&sandbox, "elsewhere", &with).await;
    let told = doctor(&pod, SECRET).await;
    told.is("secret", "no_such_secret", &["in us-west-2"]);
    let next = told.report.to_string();
    assert!(next.contains("latchkey.dev/aws-region"), "{next}");
    assert!(next.contains("--region us-west-2"), "{next}");
    let doomed = SecretInput::text("x");
    sandbox.aws.put_secret("us-west-2", "test/doomed", doomed);
    assert!(sandbox.aws.mark_for_deletion("us-west-2", "test/doomed"));
    let told = doctor(&pod, "test/doomed").await;
    let deleted = &["marked for deletion", "in us-west-2"];
    told.is("secret", "no_such_secret", deleted);
    let next = told.report.to_string();
    assert!(!next.contains("latchkey.dev/aws-region"), "{next}");
    assert!(next.contains("--region us-west-2"), "{next}");
    // Whoever asks with another namespace's role is refused by the cloud, as one that is not trusted.
    let pod = pod_of(
        &sandbox,
        "thief",
        &[(ROLE, &sandbox.aws.role_arn("prod-app"))],
    )
    .await;
    doctor(&pod, SECRET)
        .await
        .is("exchange", "role_refused", &["trust policy"]);
    sandbox.aws.remove_oidc_provider(sandbox.aws_provider());
    let pod = pod_of(&sandbox, "late", &[(ROLE, &own)]).await;
    doctor(&pod, SECRET).await.is(
        "exchange",
        "role_refused",
        &["does not know this cluster's issuer"],
    );
}

#[tokio::test]
async fn a_cloud_that_is_away_or_busy_is_told_by_which_of_its_services() {
    needs_workloads!();
    let client = Client::start().await;
    let aws = &client.sandbox.aws;
    let doctor = || client.command(&["doctor", "--json", SECRET]);
    let fault = |operation, behaviour| aws.fault(Fault::on(operation, behaviour));
    let away = fault(Operation::AssumeRoleWithWebIdentity, Behaviour::Disconnect);
    found(doctor()).await.is(
        "exchange",
        "token_service_unreachable",
        &["the AWS token service"],
    );
    drop(away);
    let no_keys = fault(
        Operation::AssumeRoleWithWebIdentity,
        Behaviour::IssuerSilent,
    );
    found(doctor()).await.is(
        "exchange",
        "issuer_unreachable",
        &["the keys of this cluster's issuer"],
    );
    drop(no_keys);
    let busy = fault(
        Operation::AssumeRoleWithWebIdentity,
        Behaviour::Throttle(Some(1)),
    );
    found(doctor())
        .await
        .is("exchange", "throttled", &["token service", "slow down"]);
    drop(busy);
    // It is left alone for two seconds.
    sleep(REFUSAL_STANDS).await;
    let away = fault(Operation::GetSecretValue, Behaviour::Disconnect);
    found(doctor()).await.is(
        "secret",
        "vault_unreachable",
        &["Secrets Manager in eu-central-1"],
    );
    drop(away);
    let busy = fault(Operation::GetSecretValue, Behaviour::Throttle(None));
    found(doctor())
        .await
        .is("secret", "throttled", &["Secrets Manager", "slow down"]);
    drop(busy);
    client
        .sandbox
        .kube
        .forbid("create", "serviceaccounts/token");
    let pod = client.sandbox.pod("test", "late").await.expect("a pod");
    let doctor = command_in(
        &pod,
        &client.sandbox.socket(),
        &["doctor", "--json", SECRET],
    );
    found(doctor)
        .await
        .is("token", "token_refused", &["may not issue tokens"]);
    // The API server, and not the token service, is what is away.
    let pod = client.sandbox.pod("test", "later").await.expect("a pod");
    let doctor = |arguments: &[&str]| command_in(&pod, &client.sandbox.socket(), arguments);
    ended(doctor(&["whoami"])).await.printed();
    client.sandbox.kube.stop_listening().await;
    found(doctor(&["doctor", "--json", SECRET])).await.is(
        "token",
        "token_unavailable",
        &["no token for the pod"],
    );
}

#[tokio::test]
async fn a_pod_over_its_limit_an_ephemeral_container_and_a_stranger_are_told_what_they_are() {
    needs_workloads!();
    let change = |settings: AgentSettings| {
        settings
            .set("limits.in_flight_per_pod", "1")
            .set("backends.aws.timeout", "10s")
    };
    let client = Client::with(change).await;
    let (sandbox, socket) = (&client.sandbox, client.sandbox.socket());
    let (gate, held) = sandbox.aws.hold(Operation::GetSecretValue);
    let over = async {
        gate.reached(1).await;
        let told = found(client.command(&["doctor", "--json", SECRET])).await;
        gate.open();
        told
    };
    let (answer, told) = tokio::join!(client.pod.secret(SECRET), over);
    assert_eq!(answer.expect("an answer").status, 200);
    told.is("limits", "over_limit", &["too many requests in flight"]);
    drop(held);

    let debug = container_id();
    client.pod.object.add_ephemeral("debug", Some(&debug));
    let place = sandbox.place(client.pod.object.uid(), &debug);
    let workload = Workload::start(place).await.expect("a process");
    let debug = SandboxPod {
        object: client.pod.object.clone(),
        workload,
        container: debug,
    };
    let told = found(command_in(&debug, &socket, &["doctor", "--json"])).await;
    told.is("attestation", "ephemeral_container", &["kubectl debug"]);

    let unknown =
        Workload::start(sandbox.place("0e5c7c1e-0000-4000-8000-000000000000", &container_id()));
    let stranger = SandboxPod {
        object: client.pod.object.clone(),
        workload: unknown.await.expect("a process"),
        container: String::new(),
    };
    let told = found(command_in(&stranger, &socket, &["doctor", "--json"])).await;
    told.is(
        "attestation",
        "not_attested",
        &["no workload that may ask here"],
    );
    let id = told.report["findings"][2]["request_id"]
        .as_str()
        .map(str::to_owned);
    assert!(id.is_some(), "{:#}", told.report);

    let spec = PodSpec {
        host_network: true,
        ..PodSpec::of("test", "host", ACCOUNT)
    };
    let pod = sandbox.pod_of(spec).await.expect("a pod");
    let host = ended(command_in(&pod, &socket, &["doctor", "--json", SECRET])).await;
    assert_eq!(host.code, Some(0), "{host:?}");
    let report: Value = serde_json::from_str(&host.stdout).expect("JSON");
    Found::notes(&report, "host_network");
}
