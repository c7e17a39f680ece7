//! What Entra ID refuses, what annotations ask for, and what `check` says is missing.

use super::{Node, SECRET};
use crate::code;
use testkit::azure::AppSpec;
use testkit::clouds::azure::{FOREIGN_VAULT, OTHER_TENANT, OTHER_VAULT, TENANT};
use testkit::kube::PodSpec;
use testkit::sandbox::SandboxPod;

/// A pod of an account of its own with these annotations, as what is known of one account is good for some seconds.
async fn pod_with(node: &Node, account: &str, annotations: &[(&str, &str)]) -> SandboxPod {
    let pod = node.sandbox.pod_as("test", account, annotations).await;
    pod.expect("a pod")
}

#[tokio::test]
async fn each_refusal_of_entra_id_says_what_to_look_at() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let prod = node.namespace("prod");
    let _agent = node.agent().await;
    let client = |change: &dyn Fn(&mut AppSpec), account: &str| {
        let client = node.tenant.client("test", account);
        let mut app = node.tenant.app(&client, "test", account);
        change(&mut app);
        node.azure.put_app(TENANT, app);
        client
    };
    let of_nobody = "11111111-2222-3333-4444-555555555555".to_owned();
    let cases = [
        (prod.clone(), 700_213, "this service account as its subject"),
        (of_nobody, 700_016, "no such application"),
        (
            client(&|app| app.issuer = "https://other.example".into(), "a-2"),
            700_211,
            "the cluster's issuer",
        ),
        (
            client(&|app| app.audience = "somebody-else".into(), "a-3"),
            700_212,
            "the token's audience",
        ),
        (
            client(&|app| app.disabled = true, "a-4"),
            7_000_112,
            "disabled",
        ),
    ];
    for (number, (client, code_there, words)) in cases.iter().enumerate() {
        let annotations = [("azure.workload.identity/client-id", &**client)];
        let pod = pod_with(&node, &format!("a-{number}"), &annotations).await;
        let answer = pod.secret("prod/database-password").await;
        let answer = answer.expect("an answer");
        let text = answer.text();
        assert_eq!((answer.status, &*code(&answer)), (403, "denied"), "{text}");
        assert!(text.contains(&format!("AADSTS{code_there}")), "{text}");
        assert!(text.contains(words) && text.contains(client), "{text}");
        assert!(!text.contains("system:serviceaccount:prod"), "{text}");
    }
    // A tenant that is none, by annotation.
    let annotations = [
        ("azure.workload.identity/client-id", &*prod),
        ("azure.workload.identity/tenant-id", "nobody.example.com"),
    ];
    let pod = pod_with(&node, "b", &annotations).await;
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert!(answer.text().contains("AADSTS90002"), "{}", answer.text());
    // Another issuer signs with the same name.
    let issuer = node.sandbox.kube.issuer();
    let impostor = issuer.impostor();
    node.azure.publish_issuer(issuer.url(), &impostor.jwks());
    let pod = node.sandbox.pod("test", "late").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert!(answer.text().contains("AADSTS700027"), "{}", answer.text());
    // A clock that is wrong is nobody's refusal.
    node.azure.publish_issuer(issuer.url(), &issuer.jwks());
    node.azure
        .set_clock_offset(jiff::SignedDuration::from_hours(3));
    let pod = node.sandbox.pod("test", "clock").await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(503, "unavailable");
    assert!(answer.text().contains("clock"), "{}", answer.text());
    assert!(node.with_token().is_empty());
}

#[tokio::test]
async fn an_annotation_asks_for_another_tenant_and_vault_and_the_cloud_decides() {
    needs_workloads!();
    let node = Node::start().await;
    let client = node.namespace("test");
    let azure = &node.azure;
    azure.admit(OTHER_VAULT, &client, None);
    let spec = testkit::azure::SecretSpec::text("of the other vault");
    azure.put_secret(OTHER_VAULT, "key", spec);
    let foreign = "99999999-2222-3333-4444-555555555555";
    azure.put_app(OTHER_TENANT, node.tenant.app(foreign, "test", "c"));
    azure.admit(FOREIGN_VAULT, foreign, Some("key"));
    let spec = testkit::azure::SecretSpec::text("of the other tenant");
    azure.put_secret(FOREIGN_VAULT, "key", spec);
    // The default vault is the node's: without a tenant of its own it would be asked in vain.
    let _agent = node.agent().await;
    let client_key = "azure.workload.identity/client-id";
    let tenant_key = "azure.workload.identity/tenant-id";
    let vault_key = "latchkey.dev/azure-vault";
    let of = |vault: &str| azure.vault_url(vault);

    let annotations = [(client_key, &*client), (vault_key, &*of(OTHER_VAULT))];
    node.sandbox
        .kube
        .annotate_service_account("test", "app", &annotations);
    let pod = node.sandbox.pod("test", "other").await.expect("a pod");
    let answer = pod.secret("key").await.expect("an answer");
    assert_eq!(
        answer.json()["value"],
        "of the other vault",
        "{}",
        answer.text()
    );
    // The vault's access policy refuses in other words.
    let denied = node.tenant.client("test", "b");
    let annotations = [(client_key, &*denied), (vault_key, &*of(OTHER_VAULT))];
    let pod = pod_with(&node, "b", &annotations).await;
    let answer = pod.secret("key").await.expect("an answer");
    answer.must_be_refused(403, "denied");

    let annotations = [
        (client_key, foreign),
        (tenant_key, OTHER_TENANT),
        (vault_key, &*of(FOREIGN_VAULT)),
    ];
    let pod = pod_with(&node, "c", &annotations).await;
    let answer = pod.secret("key").await.expect("an answer");
    assert_eq!(
        answer.json()["value"],
        "of the other tenant",
        "{}",
        answer.text()
    );
    // The node's tenant and the other's vault.
    let stray = node.tenant.client("test", "d");
    let annotations = [(client_key, &*stray), (vault_key, &*of(FOREIGN_VAULT))];
    let pod = pod_with(&node, "d", &annotations).await;
    let answer = pod.secret("key").await.expect("an answer");
    answer.must_be_refused(403, "denied");
    assert!(
        answer.text().contains("another tenant"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn without_a_client_a_tenant_or_an_allowed_vault_there_is_no_role_and_no_call() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let mut settings = node.settings();
    for key in ["backends.azure.tenant", "backends.azure.vault_url"] {
        settings.keys.remove(key);
    }
    let _agent = settings.start_ready().await.expect("an agent");
    let client = (
        "azure.workload.identity/client-id",
        "5d2e1f43-7c5e-4f5b-9d7b-0123456789ab",
    );
    let tenant = ("azure.workload.identity/tenant-id", TENANT);
    let vault = |url| ("latchkey.dev/azure-vault", url);
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[], "azure.workload.identity/client-id"),
        (&[client], "backends.azure.tenant"),
        (&[client, tenant], "backends.azure.vault_url"),
        (
            &[client, tenant, vault("https://evil.example")],
            "vault_suffixes",
        ),
        (
            &[client, tenant, vault("https://evilvault.test")],
            "vault_suffixes",
        ),
        (
            &[("azure.workload.identity/client-id", "test-app")],
            "is no client id",
        ),
    ];
    for (number, (annotations, words)) in cases.into_iter().enumerate() {
        let pod = pod_with(&node, &format!("a-{number}"), annotations).await;
        let answer = pod.secret(SECRET).await.expect("an answer");
        let text = answer.text();
        assert_eq!((answer.status, &*code(&answer)), (403, "no_role"), "{text}");
        assert!(text.contains(words), "{text}");
    }
    assert!(node.azure.calls().is_empty());
    assert!(node.sandbox.kube.tokens().is_empty());
}

#[tokio::test]
async fn a_container_that_azures_webhook_would_skip_gets_no_role() {
    needs_workloads!();
    let node = Node::start().await;
    node.namespace("test");
    let _agent = node.agent().await;
    let of = |name: &str, skipped: &str| PodSpec {
        annotations: [(
            "azure.workload.identity/skip-containers".to_owned(),
            skipped.to_owned(),
        )]
        .into(),
        ..PodSpec::of("test", name, "app")
    };
    let spec = of("skipped", "proxy; app");
    let pod = node.sandbox.pod_of(spec).await.expect("a pod");
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "no_role");
    let spec = of("other", "proxy");
    let pod = node.sandbox.pod_of(spec).await.expect("a pod");
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    assert_eq!(node.exchanges().len(), 1);
}

#[tokio::test]
async fn check_names_a_missing_tenant_and_vault_in_one_line_each() {
    needs_workloads!();
    let node = Node::start().await;
    let mut settings = node.settings();
    for key in ["backends.azure.tenant", "backends.azure.vault_url"] {
        settings.keys.remove(key);
    }
    let (_, told, _) = settings.run_to_end(&["check"]).await.expect("it ends");
    for key in ["backends.azure.tenant", "backends.azure.vault_url"] {
        let lines = told.lines().filter(|line| line.contains(key));
        assert_eq!(lines.count(), 1, "{key}: {told}");
    }
}
