//! Whose bearer it is: the workload's own principal, a service account's, one by way of delegates.

use super::{Google, SECRET, account};
use crate::{code, must_be_loud};
use testkit::gcp::Operation;
use testkit::kube::FakeKubeConfig;
use testkit::sandbox::password;

/// The issuer of a cluster of GKE.
const GKE: &str =
    "https://container.googleapis.com/v1/projects/acme-prod/locations/europe-west3/clusters/one";

#[tokio::test]
async fn without_an_annotation_a_pod_reads_as_its_own_principal() {
    needs_workloads!();
    let google = Google::start().await;
    let agent = google.agent(&[]).await;
    let pod = google.pod_of("plain", &[]).await;
    let denied = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(
        (denied.status, &*code(&denied)),
        (403, "denied"),
        "{}",
        denied.text()
    );
    let principal = google.gcp.principal("test", "plain");
    google.admit(&principal);
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(
        answer.json()["value"],
        password("test"),
        "{}",
        answer.text()
    );
    assert_eq!(google.count(Operation::GenerateAccessToken), 0);
    let line = agent
        .until_audit(|line| line["outcome"] == "ok")
        .await
        .expect("a line");
    assert_eq!(line["role"], *principal);
    let identity = pod.get("/v1/identity").await.expect("an answer").json();
    assert_eq!(identity["roles"]["gcp"], *principal);
    // The token was made out to the provider, and to nobody else.
    let audience = format!("https:{}", google.gcp.provider);
    assert!(
        google
            .sandbox
            .kube
            .tokens()
            .iter()
            .all(|token| token.audiences == [&*audience])
    );
}

#[tokio::test]
async fn on_gke_the_clusters_own_pool_is_enough() {
    needs_workloads!();
    let kube = FakeKubeConfig {
        issuer: Some(GKE.into()),
        ..FakeKubeConfig::default()
    };
    let google = Google::with(kube).await;
    let pool = google
        .gcp
        .cloud
        .add_cluster(GKE, &google.sandbox.kube.issuer().jwks());
    let agent = google.agent(&[("backends.gcp.provider", &pool)]).await;
    let plain = google.pod_of("plain", &[]).await;
    google.admit(&format!("serviceAccount:{pool}[test/plain]"));
    let answer = plain.secret(SECRET).await.expect("an answer");
    assert_eq!(
        answer.json()["value"],
        password("test"),
        "{}",
        answer.text()
    );
    // The account of the annotation, as GKE's documentation binds it.
    let member = format!("serviceAccount:{pool}[test/app]");
    google
        .gcp
        .cloud
        .bind_account(&account(), "roles/iam.workloadIdentityUser", &member);
    let pod = google.pod().await;
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(
        answer.json()["value"],
        password("test"),
        "{}",
        answer.text()
    );
    let other = pod
        .secret("prod/database-password")
        .await
        .expect("an answer");
    other.must_be_refused(403, "denied");
    let line = agent
        .until_audit(|line| line["code"] == "denied")
        .await
        .expect("a line");
    assert_eq!(line["role"], account());
    assert!(
        google
            .sandbox
            .kube
            .tokens()
            .iter()
            .all(|token| token.audiences == [&*pool])
    );
}

#[tokio::test]
async fn a_service_account_is_reached_by_its_delegates_or_not_at_all() {
    needs_workloads!();
    let google = Google::start().await;
    let cloud = &google.gcp.cloud;
    let (between, last) = (
        cloud.create_account("between"),
        cloud.create_account("last"),
    );
    let creator = "roles/iam.serviceAccountTokenCreator";
    cloud.bind_account(&between, creator, &google.gcp.principal("test", "far"));
    cloud.bind_account(&last, creator, &format!("serviceAccount:{between}"));
    google.admit(&format!("serviceAccount:{last}"));
    let _agent = google.agent(&[]).await;
    let chain = format!("[\"{between}\"]");
    let named = ("iam.gke.io/gcp-service-account", &*last);
    let far = google
        .pod_of(
            "far",
            &[named, ("iam.gke.io/gcp-service-account-delegates", &chain)],
        )
        .await;
    let answer = far.secret(SECRET).await.expect("an answer");
    assert_eq!(
        answer.json()["value"],
        password("test"),
        "{}",
        answer.text()
    );
    let near = google.pod_of("near", &[named]).await;
    let answer = near.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    let wrong = google
        .pod_of(
            "wrong",
            &[
                named,
                ("iam.gke.io/gcp-service-account-delegates", &between),
            ],
        )
        .await;
    let answer = wrong.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "no_role");
}

#[tokio::test]
async fn an_annotation_that_is_no_account_or_project_is_no_role_and_nobody_is_asked() {
    needs_workloads!();
    let google = Google::start().await;
    let _agent = google.agent(&[]).await;
    for (number, (key, value)) in [
        ("iam.gke.io/gcp-service-account", "test-app"),
        (
            "iam.gke.io/gcp-service-account",
            "a/../b@acme-prod.iam.gserviceaccount.com",
        ),
        ("latchkey.dev/gcp-project", "../acme-prod"),
        ("latchkey.dev/prefix", "prod.x"),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = google
            .pod_of(&format!("odd-{number}"), &[(key, value)])
            .await;
        let answer = pod.secret(SECRET).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (403, "no_role"),
            "{key}: {value}"
        );
    }
    assert!(google.gcp.cloud.calls().is_empty());
}

#[tokio::test]
async fn googles_own_log_names_pod_and_request() {
    needs_workloads!();
    let google = Google::start().await;
    let agent = google.agent(&[]).await;
    let pod = google.pod().await;
    let answer = pod.secret(SECRET).await.expect("an answer");
    let request = answer.header("x-request-id").expect("an id").to_owned();
    let uid = pod.object.uid();
    let [read] = google
        .gcp
        .cloud
        .calls_of(Operation::AccessSecretVersion)
        .try_into()
        .expect("one read");
    assert_eq!(
        read.reason,
        Some(format!("latchkey pod_uid={uid} request_id={request}"))
    );
    assert_eq!(read.principal, Some(account()));
    let taken_on = google.gcp.cloud.calls_of(Operation::GenerateAccessToken);
    let exchanged = google.gcp.cloud.calls_of(Operation::ExchangeToken);
    for call in exchanged.iter().chain(&taken_on) {
        assert_eq!(call.reason, read.reason);
    }
    assert_eq!(
        taken_on[0].principal,
        Some(google.gcp.principal("test", "app"))
    );
    let line = agent
        .until_audit(|line| line["request_id"] == *request)
        .await
        .expect("a line");
    assert_eq!(line["pod_uid"], uid);
}

#[tokio::test]
async fn no_bearer_is_in_anything_that_the_agent_says() {
    needs_workloads!();
    let google = Google::start().await;
    let agent = google.agent(&[("log.level", "trace")]).await;
    let pod = google.pod().await;
    let mut said = String::new();
    for name in [SECRET, "prod/database-password", "test/none", "test/a..b"] {
        said += &pod.secret(name).await.expect("an answer").text();
    }
    must_be_loud(&agent, &google.sandbox.socket()).await;
    let own = said.matches(&password("test")).count();
    said += &agent.stderr().join("\n");
    said += &agent.admin("/metrics").await.expect("metrics").1;
    let bearers = google.gcp.cloud.bearers();
    assert!(bearers.len() >= 2);
    for bearer in &bearers {
        assert!(!said.contains(bearer));
    }
    assert!(!said.contains("eyJ") && !said.contains("ya29."));
    assert_eq!((own, said.matches(&password("test")).count()), (1, 1));
}
