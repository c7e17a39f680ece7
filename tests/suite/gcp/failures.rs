//! What goes wrong on the way to a bearer, and with it.

use super::{Google, SECRET};
use crate::code;
use std::time::{Duration, Instant};
use testkit::gcp::{Behaviour, FakeGcp, Fault, Operation, Special};
use testkit::sandbox::Sandbox;
use testkit::sandbox::password;
use testkit::workload::Response;
use tokio::time::sleep;

const EXCHANGES: [Operation; 2] = [Operation::ExchangeToken, Operation::GenerateAccessToken];

#[tokio::test]
async fn a_redirect_of_googles_is_not_followed_and_carries_nothing_elsewhere() {
    needs_workloads!();
    let google = Google::start().await;
    let elsewhere = FakeGcp::start().await.expect("another host");
    let _agent = google.agent(&[]).await;
    let pod = google.pod().await;
    for operation in [EXCHANGES[0], EXCHANGES[1], Operation::AccessSecretVersion] {
        let url = format!("{}/v1/elsewhere", elsewhere.endpoint());
        let _fault = google.gcp.cloud.fault(Fault::on(
            operation,
            Behaviour::Special(Special::Redirect(url)),
        ));
        let answer = pod.secret(SECRET).await.expect("an answer");
        assert_eq!(
            (answer.status, &*code(&answer)),
            (503, "unavailable"),
            "{operation:?}: {}",
            answer.text()
        );
    }
    assert_eq!(elsewhere.calls().len(), 0, "{:?}", elsewhere.calls());
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_ok();
}

#[tokio::test]
async fn the_token_services_fail_in_the_same_words_as_the_vault() {
    needs_workloads!();
    let google = Google::start().await;
    let agent = google.agent(&[("backends.gcp.timeout", "1s")]).await;
    let pod = google.pod().await;
    let ask = async || -> Response { pod.secret(SECRET).await.expect("an answer") };
    let faults = [
        (Behaviour::Throttle(Some(3)), 429, "throttled", "3"),
        (Behaviour::Throttle(None), 429, "throttled", "1"),
        (Behaviour::InternalError, 503, "unavailable", "1"),
        (Behaviour::ServiceUnavailable, 503, "unavailable", "1"),
        (Behaviour::Html(200), 503, "unavailable", "1"),
        (Behaviour::Endless, 503, "unavailable", "1"),
        (Behaviour::TruncatedBody, 503, "unavailable", "1"),
        (Behaviour::CutBody, 503, "unavailable", "1"),
        (Behaviour::Disconnect, 503, "unavailable", "1"),
        (Behaviour::Hang, 503, "unavailable", "1"),
    ];
    for operation in EXCHANGES {
        for (behaviour, status, word, wait) in faults.clone() {
            let what = format!("{operation:?} {behaviour:?}");
            let _fault = google.gcp.cloud.fault(Fault::on(operation, behaviour));
            let begun = Instant::now();
            let answer = ask().await;
            assert_eq!(
                (answer.status, &*code(&answer)),
                (status, word),
                "{what}: {}",
                answer.text()
            );
            assert_eq!(answer.header("retry-after"), Some(wait), "{what}");
            assert!(begun.elapsed() < Duration::from_secs(8), "{what}");
            if status == 429 {
                // It is left alone for as long as it asks, and for two seconds at least.
                let rest = wait.parse::<u64>().unwrap_or_default().max(2);
                sleep(Duration::from_secs(rest) + Duration::from_millis(200)).await;
            }
        }
    }
    // Once is not enough to fail.
    for operation in [EXCHANGES[0], EXCHANGES[1], Operation::AccessSecretVersion] {
        let _fault = google
            .gcp
            .cloud
            .fault(Fault::on(operation, Behaviour::ServiceUnavailable).times(1));
        let answer = ask().await;
        assert_eq!(
            answer.json()["value"],
            password("test"),
            "{operation:?}: {}",
            answer.text()
        );
        google.gcp.cloud.expire_bearers();
    }
    let details = Fault::on(
        Operation::AccessSecretVersion,
        Behaviour::Special(Special::ThrottleInDetails(9)),
    );
    let _fault = google.gcp.cloud.fault(details);
    assert_eq!(ask().await.header("retry-after"), Some("9"));
    let said = agent.stderr().join("\n");
    assert!(!said.contains("ya29.") && !said.contains("eyJ"), "{said}");
}

#[tokio::test]
async fn a_provider_that_does_not_know_the_cluster_is_told_as_such() {
    needs_workloads!();
    let google = Google::start().await;
    let other = google.gcp.cloud.provider_name("clusters", "other");
    let _agent = google.agent(&[("backends.gcp.provider", &other)]).await;
    let answer = google.pod().await.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    assert!(
        answer.text().contains("Google knows no identity provider"),
        "{}",
        answer.text()
    );
    assert_eq!(google.count(Operation::AccessSecretVersion), 0);
}

#[tokio::test]
async fn a_cluster_whose_keys_are_others_is_believed_nothing() {
    needs_workloads!();
    let google = Google::start().await;
    let impostor = google.sandbox.kube.issuer().impostor();
    let spec =
        testkit::gcp::ProviderSpec::new(&google.gcp.provider, impostor.url(), impostor.jwks());
    google.gcp.cloud.add_provider(spec).expect("a provider");
    let _agent = google.agent(&[]).await;
    let answer = google.pod().await.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(403, "denied");
    assert!(
        answer
            .text()
            .contains("Google refused the service account's token"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn what_the_configuration_lacks_is_named_in_a_line_each_and_stops_the_start() {
    let sandbox = Sandbox::start().await.expect("a sandbox");
    let settings = sandbox
        .settings()
        .expect("settings")
        .without("backends.aws")
        .set("default_backend", "gcp")
        .set("backends.gcp.type", "gcp");
    for arguments in [&["check"][..], &[]] {
        let (status, _, said) = settings.run_to_end(arguments).await.expect("it ends");
        assert_eq!(status.code(), Some(78), "{said}");
        for key in ["backends.gcp.project", "backends.gcp.provider"] {
            let lines: Vec<_> = said.lines().filter(|line| line.contains(key)).collect();
            assert_eq!(lines.len(), 1, "{key}: {said}");
        }
    }
    let whole = settings
        .set("backends.gcp.project", "acme-prod")
        .set("backends.gcp.provider", "acme-prod.svc.id.goog");
    let (_, found, said) = whole.run_to_end(&["check"]).await.expect("it ends");
    let line = "Google Cloud Secret Manager in acme-prod, tokens for acme-prod.svc.id.goog";
    assert!(found.contains(line) || said.contains(line), "{found}{said}");
}

#[tokio::test]
async fn with_all_of_google_hanging_a_request_ends_by_its_deadline() {
    needs_workloads!();
    let google = Google::start().await;
    let keys = [
        ("limits.request_deadline", "1s"),
        ("limits.attest_wait", "1s"),
        ("backends.gcp.timeout", "1s"),
    ];
    let _agent = google.agent(&keys).await;
    let pod = google.pod().await;
    let _fault = google.gcp.cloud.fault(Fault::everywhere(Behaviour::Hang));
    let begun = Instant::now();
    let answer = pod.secret(SECRET).await.expect("an answer");
    answer.must_be_refused(504, "timeout");
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(3));
}
