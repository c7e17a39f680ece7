//! Secret Manager: versions and their states, checksums, projects, prefixes, lists.

use super::{ACCESSOR, Google, SECRET, account};
use crate::code;
use testkit::clouds::Cloud as _;
use testkit::gcp::{Behaviour, Fault, Operation, Special, VersionState};
use testkit::sandbox::CANARY;

#[tokio::test]
async fn a_version_that_is_disabled_or_destroyed_is_not_found() {
    needs_workloads!();
    let google = Google::start().await;
    let cloud = &google.gcp.cloud;
    google.gcp.put("test/turning", b"first");
    google.gcp.put("test/turning", b"second");
    let _agent = google.agent(&[]).await;
    let pod = google.pod().await;
    let ask = async |query: &str| {
        pod.secret(&format!("test/turning{query}"))
            .await
            .expect("an answer")
    };
    assert_eq!(ask("").await.json()["version"], "2");
    assert_eq!(ask("?version=latest").await.json()["value"], "second");
    assert!(cloud.set_version_state("test--turning", "2", VersionState::Disabled));
    for query in ["", "?version=2", "?version=latest"] {
        let answer = ask(query).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (404, "not_found"),
            "{query}"
        );
    }
    assert_eq!(ask("?version=1").await.json()["value"], "first");
    assert!(cloud.set_version_state("test--turning", "1", VersionState::Destroyed));
    assert_eq!(ask("?version=1").await.status, 404);
    assert!(cloud.set_version_state("test--turning", "2", VersionState::Enabled));
    assert_eq!(ask("").await.json()["value"], "second");
    // A version that is none does not get to Google.
    let before = google.count(Operation::AccessSecretVersion);
    for wrong in ["v1", "1a", "-1", "1/../2", "latest:destroy", "LATEST"] {
        let answer = ask(&format!("?version={wrong}")).await;
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{wrong}"
        );
    }
    assert_eq!(google.count(Operation::AccessSecretVersion), before);
}

#[tokio::test]
async fn a_value_that_does_not_match_its_checksum_is_not_given_out() {
    needs_workloads!();
    let google = Google::start().await;
    let _agent = google.agent(&[]).await;
    let pod = google.pod().await;
    let fault = google.gcp.cloud.fault(Fault::on(
        Operation::AccessSecretVersion,
        Behaviour::Special(Special::BadChecksum),
    ));
    let answer = pod.secret(SECRET).await.expect("an answer");
    assert_eq!(
        (answer.status, &*code(&answer)),
        (503, "unavailable"),
        "{}",
        answer.text()
    );
    assert!(!answer.text().contains(CANARY));
    drop(fault);
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
}

#[tokio::test]
async fn names_that_google_cannot_hold_are_refused_before_it_is_asked() {
    needs_workloads!();
    let google = Google::start().await;
    let _agent = google.agent(&[]).await;
    let pod = google.pod().await;
    assert_eq!(pod.secret(SECRET).await.expect("an answer").status, 200);
    let before = google.gcp.cloud.calls().len();
    let long = format!("test/{}", "n".repeat(250));
    for name in [
        "test--database-password",
        "test/-a",
        "test/a-",
        "test/a--b",
        "test/a.b",
        "test/a%20b",
        "test/a:b",
        "test/versions/1:access",
        "test/a@b",
        "test/%C3%A9",
        "arn:aws:secretsmanager:eu-central-1:111122223333:secret:x",
        &long,
    ] {
        let answer = pod.secret(name).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (400, "invalid_request"),
            "{name}: {}",
            answer.text()
        );
    }
    assert_eq!(google.gcp.cloud.calls().len(), before);
}

#[tokio::test]
async fn project_and_prefix_are_the_accounts_own_where_it_asks_for_them() {
    needs_workloads!();
    let google = Google::start().await;
    let cloud = &google.gcp.cloud;
    cloud.add_project("acme-other", "999");
    google.gcp.put("test/sub/deep", b"with a prefix");
    let named = ("iam.gke.io/gcp-service-account", &*account());
    cloud.bind_account(
        &account(),
        "roles/iam.workloadIdentityUser",
        &google.gcp.principal("test", "deep"),
    );
    cloud.bind_account(
        &account(),
        "roles/iam.workloadIdentityUser",
        &google.gcp.principal("test", "other"),
    );
    let _agent = google.agent(&[]).await;
    let deep = google
        .pod_of("deep", &[named, ("latchkey.dev/prefix", "test/sub/")])
        .await;
    let answer = deep.secret("deep").await.expect("an answer");
    assert_eq!(
        (&answer.json()["value"], &answer.json()["name"]),
        (&"with a prefix".into(), &"deep".into())
    );
    let listed = deep.get("/v1/secrets").await.expect("an answer");
    assert_eq!(
        listed.json()["secrets"],
        serde_json::json!(["deep"]),
        "{}",
        listed.text()
    );
    // In the other project nothing was granted to it.
    let other = google
        .pod_of(
            "other",
            &[named, ("latchkey.dev/gcp-project", "acme-other")],
        )
        .await;
    let answer = other.secret(SECRET).await.expect("an answer");
    assert_eq!(
        (answer.status, &*code(&answer)),
        (403, "denied"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn a_list_asks_google_for_what_has_the_prefix_and_at_most_ten_times() {
    needs_workloads!();
    let google = Google::start().await;
    let cloud = &google.gcp.cloud;
    for number in 0..30 {
        google.gcp.put(&format!("test/page/{number}"), b"x");
    }
    // Names that nobody could ask for are not shown, and neither is what only holds the prefix.
    for odd in ["test--page---odd", "test--page---", "prod--test--page--x"] {
        cloud.put_secret(odd, b"x");
    }
    // What Google itself is to leave out, or a list would never come to its end.
    for number in 0..200 {
        cloud.put_secret(&format!("other--{number}"), b"x");
    }
    cloud.set_page_limit(2);
    cloud.bind_account(
        &account(),
        "roles/iam.workloadIdentityUser",
        &google.gcp.principal("test", "lister"),
    );
    let _agent = google.agent(&[]).await;
    let named = ("iam.gke.io/gcp-service-account", &*account());
    let pod = google
        .pod_of("lister", &[named, ("latchkey.dev/prefix", "test/page/")])
        .await;
    let mut names = Vec::new();
    let mut path = "/v1/secrets?limit=1000".to_owned();
    loop {
        let before = google.count(Operation::ListSecrets);
        let body = pod.get(&path).await.expect("an answer").json();
        assert!(google.count(Operation::ListSecrets) - before <= 10);
        let page = body["secrets"].as_array().expect("names");
        names.extend(
            page.iter()
                .filter_map(|name| name.as_str().map(str::to_owned)),
        );
        let Some(next) = body["next"].as_str() else {
            break;
        };
        path = format!("/v1/secrets?limit=1000&cursor={next}");
    }
    names.sort_unstable();
    let mut written: Vec<_> = (0..30).map(|number| number.to_string()).collect();
    written.sort_unstable();
    assert_eq!(names, written);
    let calls = google.count(Operation::ListSecrets);
    assert!(
        calls <= 20,
        "{calls} calls for what seventeen have room for"
    );
    let refused = pod
        .get("/v1/secrets?cursor=guess")
        .await
        .expect("an answer");
    assert_eq!(
        (refused.status, &*code(&refused)),
        (400, "invalid_request"),
        "{}",
        refused.text()
    );
    cloud.unbind(&format!("serviceAccount:{}", account()));
    cloud.bind_project(ACCESSOR, &format!("serviceAccount:{}", account()), None);
    let refused = pod.get("/v1/secrets").await.expect("an answer");
    refused.must_be_refused(403, "denied");
}

#[tokio::test]
async fn each_call_that_a_list_makes_counts_against_the_pods_rate() {
    needs_workloads!();
    let google = Google::start().await;
    for number in 0..30 {
        google.gcp.put(&format!("test/page/{number}"), b"x");
    }
    google.gcp.cloud.set_page_limit(2);
    let _agent = google
        .agent(&[("limits.requests_per_second_per_pod", "1")])
        .await;
    let pod = google.pod().await;
    // Ten calls, which takes all that there is until the next second.
    let list = async || pod.get("/v1/secrets?limit=1000").await.expect("an answer");
    assert_eq!(list().await.status, 200);
    assert_eq!(google.count(Operation::ListSecrets), 10);
    let answer = list().await;
    answer.must_be_refused(429, "busy");
}
