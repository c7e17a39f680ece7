//! What the API server is asked for, and how its answers are handled.

use super::*;
use crate::attest::cgroup::PodUid;
use crate::attest::pods::{Facts, Pod, Settings};
use kube::core::Status;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// An API server that answers everything with `answer`, and the path and body of the last request to it.
struct ApiServer {
    tokens: SubjectTokens,
    asked: Arc<Mutex<(String, Value)>>,
}

impl ApiServer {
    fn answers(status: u16, answer: Value) -> Self {
        let asked = Arc::<Mutex<(String, Value)>>::default();
        let last = asked.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (last, answer) = (last.clone(), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let asked = serde_json::from_slice(&body)?;
                *last.lock().expect("no panic") = (head.uri.path().to_owned(), asked);
                let body = kube::client::Body::from(answer.to_string().into_bytes());
                let answer = http::Response::builder().status(status).body(body)?;
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
            }
        });
        let client = kube::Client::new(service, "default");
        Self {
            tokens: SubjectTokens::Kubernetes(client),
            asked,
        }
    }

    async fn issue(&self, workload: &Workload) -> Result<String, RequestError> {
        let issued = self.tokens.issue(workload, "sts.amazonaws.com").await;
        issued.map(|token| token.expose().to_owned())
    }
}

fn issued(seconds: i64) -> Value {
    let expires = crate::time::now() + jiff::SignedDuration::from_secs(seconds);
    json!({
        "metadata": {}, "spec": {"audiences": []},
        "status": {"token": "token", "expirationTimestamp": expires.to_string()},
    })
}

fn workload(uid: Option<PodUid>) -> Workload {
    let facts = Facts::of_principal("test", "app", "web");
    Workload::synthetic(Pod::new(uid, facts, &Settings::default()))
}

#[tokio::test]
async fn a_token_is_asked_for_one_audience_and_ten_minutes_and_bound_to_the_pod() {
    let server = ApiServer::answers(201, issued(600));
    let uid = PodUid::synthetic(7);
    let token = server.issue(&workload(Some(uid))).await;
    assert_eq!(token.ok().as_deref(), Some("token"));
    let (path, asked) = server.asked.lock().expect("no panic").clone();
    assert_eq!(path, "/api/v1/namespaces/test/serviceaccounts/app/token");
    let spec = json!({
        "audiences": ["sts.amazonaws.com"],
        "expirationSeconds": 600,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid.to_string()},
    });
    assert_eq!(asked["spec"], spec);
}

#[tokio::test]
async fn nothing_is_asked_for_a_pod_that_no_token_could_be_bound_to() {
    let server = ApiServer::answers(201, issued(600));
    let error = server.issue(&workload(None)).await.expect_err("no UID");
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(server.asked.lock().expect("no panic").0, "");
}

#[tokio::test]
async fn an_answer_without_a_token_that_lives_is_none() {
    for (seconds, code) in [
        (0, Some(Code::Unavailable)),
        (-1, Some(Code::Unavailable)),
        (5, None),
    ] {
        let server = ApiServer::answers(201, issued(seconds));
        let issued = server.issue(&workload(Some(PodUid::synthetic(7)))).await;
        assert_eq!(
            issued.as_ref().err().map(|error| error.code),
            code,
            "{seconds}"
        );
        if let Err(error) = issued {
            assert!(error.message.contains("clocks"), "{}", error.message);
        }
    }
    let server = ApiServer::answers(201, json!({"metadata": {}, "spec": {"audiences": []}}));
    let error = server.issue(&workload(Some(PodUid::synthetic(7)))).await;
    assert_eq!(error.expect_err("no status").code, Code::Unavailable);
}

#[test]
fn a_refusal_of_the_api_servers_says_whose_matter_it_is() {
    for (status, code) in [
        (400, Code::Denied),
        (403, Code::Denied),
        (404, Code::NotAttested),
        (409, Code::NotAttested),
        (422, Code::Denied),
        (429, Code::Unavailable),
        (500, Code::Unavailable),
    ] {
        let answer = Status {
            code: status,
            ..Status::default()
        };
        let error = refusal(&kube::Error::Api(answer.boxed()));
        assert_eq!(error.code, code, "{status}");
    }
}

/// The API server's admission words this like a missing Role, except for the cause.
#[test]
fn a_namespace_that_is_being_deleted_is_not_told_as_a_missing_right() {
    let answer = json!({
        "code": 403,
        "reason": "Forbidden",
        "details": {"causes": [{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]},
    });
    let answer: Status = serde_json::from_value(answer).expect("a status");
    let error = refusal(&kube::Error::Api(answer.boxed()));
    assert_eq!(error.code, Code::Denied);
    assert!(error.message.contains("deleted"), "{}", error.message);
}

#[test]
fn a_status_of_the_api_servers_may_say_how_long_to_wait() {
    let busy = |seconds| {
        let answer = json!({"code": 429, "details": {"retryAfterSeconds": seconds}});
        let answer: Status = serde_json::from_value(answer).expect("a status");
        refusal(&kube::Error::Api(answer.boxed())).retry_after
    };
    assert_eq!(busy(7), Some(Duration::from_secs(7)));
    assert_eq!(busy(0), unavailable().retry_after);
}

#[test]
fn where_the_kubelet_hands_tokens_over_a_refusal_says_what_is_missing_there() {
    let denied = || RequestError::new(Code::Denied, "the namespace has to allow it");
    for (kubelets, code, words) in [
        (FromKubelet::NeverAny, Code::Denied, "the namespace"),
        (FromKubelet::NotYet, Code::Unavailable, "each minute"),
        (FromKubelet::NotThisAudience, Code::Denied, "tokenRequests"),
    ] {
        let error = without_the_kubelets(denied(), &kubelets);
        assert_eq!(error.code, code, "{words}");
        assert!(error.message.contains(words), "{}", error.message);
    }
    // Any other error stays what it is.
    let error = without_the_kubelets(unavailable(), &FromKubelet::NotThisAudience);
    assert_eq!(error.code, Code::Unavailable);
}
