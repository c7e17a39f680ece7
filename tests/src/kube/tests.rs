mod watch;

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject, ServiceAccount};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::*;
use crate::jwt::KeySet;

/// The longest that anything here may take; no test waits for all of it.
const PATIENCE: Duration = Duration::from_secs(10);

async fn cluster() -> FakeKube {
    cluster_with(FakeKubeConfig::default()).await
}

async fn cluster_with(config: FakeKubeConfig) -> FakeKube {
    FakeKube::start(config).await.expect("the fake starts")
}

/// A client with the kubeconfig file, like the agent's.
async fn client(kube: &FakeKube, user: &str) -> Client {
    let directory = tempfile::tempdir().expect("a directory");
    let file = kube
        .kubeconfig_file(directory.path(), user)
        .expect("a kubeconfig");
    let kubeconfig = Kubeconfig::read_from(file).expect("a readable kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.expect("a usable kubeconfig");
    config.default_retry = false;
    Client::try_from(config).expect("a client")
}

fn pod_named(name: &str) -> PodSpec {
    PodSpec {
        name: name.to_owned(),
        ..PodSpec::default()
    }
}

fn wish(audience: &str, seconds: i64, pod: &str, uid: &str) -> TokenRequest {
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.into()),
        uid: Some(uid.into()),
    };
    let spec = TokenRequestSpec {
        audiences: vec![audience.to_owned()],
        expiration_seconds: Some(seconds),
        bound_object_ref: Some(bound),
    };
    TokenRequest {
        spec,
        ..TokenRequest::default()
    }
}

async fn token(
    kube: &FakeKube,
    user: &str,
    account: &str,
    wish: &TokenRequest,
) -> Result<TokenRequest, (u16, String)> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client(kube, user).await, "default");
    let answer = accounts
        .create_token_request(account, &PostParams::default(), wish)
        .await;
    answer.map_err(refusal)
}

fn refusal(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.message),
        other => (0, other.to_string()),
    }
}

#[tokio::test]
async fn a_list_is_paged_and_an_old_page_token_expires_with_a_new_one() {
    let kube = cluster().await;
    for name in ["a", "b", "c"] {
        kube.create_pod(pod_named(name));
    }
    let pods: Api<PodObject> = Api::all(client(&kube, AGENT).await);
    let page = ListParams::default().limit(2);
    let first = pods.list(&page).await.expect("a page");
    let names = |list: &[PodObject]| -> Vec<String> {
        list.iter()
            .filter_map(|pod| pod.metadata.name.clone())
            .collect()
    };
    assert_eq!(names(&first.items), ["a", "b"]);
    assert_eq!(first.metadata.remaining_item_count, Some(1));
    let next = first.metadata.continue_.expect("a token");
    kube.create_pod(pod_named("d"));
    let rest = pods
        .list(&page.clone().continue_token(&next))
        .await
        .expect("the rest");
    assert_eq!(
        names(&rest.items),
        ["c"],
        "the second page is of the first one's time"
    );
    kube.compact();
    let gone = pods
        .list(&page.clone().continue_token(&next))
        .await
        .expect_err("too old");
    let kube::Error::Api(status) = gone else {
        panic!("{gone}")
    };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    let next = status
        .metadata
        .and_then(|metadata| metadata.continue_)
        .expect("a token to go on with");
    let rest = pods
        .list(&page.continue_token(&next))
        .await
        .expect("the rest");
    assert_eq!(names(&rest.items), ["c", "d"]);
    // The crate never sends this pair; others do, and the watch cache knows no pages.
    let any = http::Request::get("/api/v1/pods?limit=1&resourceVersion=0");
    let any = any.body(Vec::new()).expect("a request");
    let any: serde_json::Value = client(&kube, AGENT).await.request(any).await.expect("all");
    assert_eq!(any["items"].as_array().map(Vec::len), Some(4));
}

#[tokio::test]
async fn a_stale_server_answers_from_the_past() {
    let kube = cluster().await;
    let pods: Api<PodObject> = Api::all(client(&kube, AGENT).await);
    let newest = ListParams::default();
    let any = ListParams::default().match_any();
    kube.stale(StaleReads::Cached);
    kube.create_pod(pod_named("web"));
    assert_eq!(pods.list(&any).await.expect("a list").items.len(), 0);
    assert_eq!(pods.list(&newest).await.expect("a list").items.len(), 1);
    kube.stale_end();
    assert_eq!(pods.list(&any).await.expect("a list").items.len(), 1);
    kube.stale(StaleReads::All);
    kube.create_pod(pod_named("more"));
    let stale = pods.list(&newest).await.expect("a list");
    assert_eq!(stale.items.len(), 1);
    let ahead = ListParams::default().at(&kube.revision().to_string());
    let ahead = ahead.matching(kube::api::VersionMatch::NotOlderThan);
    let (code, message) = refusal(pods.list(&ahead).await.expect_err("not yet"));
    assert!(
        code == 504 && message.contains("Too large resource version"),
        "{code} {message}"
    );
}

#[tokio::test]
async fn a_token_is_bound_to_the_pod_and_verifies_against_the_published_keys() {
    let kube = cluster().await;
    let web = kube.create_pod(pod_named("web"));
    let request = wish("sts.amazonaws.com", 600, "web", web.uid());
    let given = token(&kube, AGENT, "default", &request)
        .await
        .expect("a token");
    let status = given.status.expect("a status");
    let jwks = published_keys(&kube).await;
    let claims = KeySet::from_jwks(&jwks)
        .verify(&status.token)
        .expect("a good signature");
    assert_eq!(claims["iss"], kube.url());
    assert_eq!(claims["sub"], "system:serviceaccount:default:default");
    assert_eq!(claims["aud"], serde_json::json!(["sts.amazonaws.com"]));
    assert_eq!(claims["kubernetes.io"]["pod"]["uid"], web.uid());
    assert_eq!(
        claims["kubernetes.io"]["serviceaccount"]["uid"],
        kube.service_account_uid("default", "default")
    );
    let life = claims["exp"]
        .as_i64()
        .zip(claims["iat"].as_i64())
        .map(|(exp, iat)| exp - iat);
    assert_eq!(life, Some(600));
    let noted = kube.tokens();
    assert_eq!(noted.len(), 1);
    assert_eq!(noted[0].token.as_deref(), Some(status.token.as_str()));
}

async fn published_keys(kube: &FakeKube) -> serde_json::Value {
    let request = http::Request::get("/openid/v1/jwks")
        .body(Vec::new())
        .expect("a request");
    client(kube, "nobody")
        .await
        .request(request)
        .await
        .expect("the key set is open to everybody")
}

#[tokio::test]
async fn a_token_request_that_is_wrong_is_refused_as_the_real_server_refuses_it() {
    let kube = cluster().await;
    kube.create_service_account("default", "other", &[]);
    let old = kube.create_pod(pod_named("web"));
    old.delete();
    let web = kube.create_pod(pod_named("web"));
    let good = wish("aud", 600, "web", web.uid());
    let ask = async |account: &str, wish: &TokenRequest| {
        token(&kube, AGENT, account, wish)
            .await
            .expect_err("a refusal")
    };
    let (code, message) = ask("default", &wish("aud", 600, "web", old.uid())).await;
    assert_eq!(code, 409);
    assert!(
        message.starts_with("Operation cannot be fulfilled on Pod \"web\": the UID in the bound"),
        "{message}"
    );
    assert_eq!(
        ask("default", &wish("aud", 600, "gone", "u")).await,
        (404, "pods \"gone\" not found".into())
    );
    assert_eq!(
        ask("none", &good).await,
        (404, "serviceaccounts \"none\" not found".into())
    );
    let (code, message) = ask("other", &good).await;
    assert!(
        code == 400 && message.contains("different serviceaccount name"),
        "{code} {message}"
    );
    let (code, message) = ask("default", &wish("aud", 599, "web", web.uid())).await;
    assert!(
        code == 422 && message.contains("less than 10 minutes"),
        "{code} {message}"
    );
    let (code, message) = ask("default", &wish("", 600, "web", web.uid())).await;
    assert!(
        code == 422 && message.contains("spec.audiences"),
        "{code} {message}"
    );
    assert!(kube.tokens().iter().all(|noted| noted.token.is_none()));
}

#[tokio::test]
async fn rights_are_judged_and_refused_in_the_servers_words() {
    let kube = cluster().await;
    let web = kube.create_pod(pod_named("web"));
    let request = wish("aud", 600, "web", web.uid());
    kube.forbid("create", "serviceaccounts/token");
    let refused = token(&kube, AGENT, "default", &request)
        .await
        .expect_err("forbidden");
    let message = format!(
        "serviceaccounts \"default\" is forbidden: User \"{AGENT}\" cannot create resource \
         \"serviceaccounts/token\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(refused, (403, message));
    kube.permit("create", "serviceaccounts/token");
    token(&kube, AGENT, "default", &request)
        .await
        .expect("permitted again");

    let nobody: Api<PodObject> = Api::all(client(&kube, "nobody").await);
    let refused = refusal(
        nobody
            .list(&ListParams::default())
            .await
            .expect_err("forbidden"),
    );
    let message = "pods is forbidden: User \"nobody\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
    assert_eq!(refused, (403, message.to_owned()));
    kube.grant(
        "nobody",
        vec![Rule {
            namespace: Some("default".into()),
            ..Rule::allow("list", "pods")
        }],
    );
    let own: Api<PodObject> = Api::namespaced(client(&kube, "nobody").await, "default");
    assert_eq!(
        own.list(&ListParams::default())
            .await
            .expect("own")
            .items
            .len(),
        1
    );
    nobody
        .list(&ListParams::default())
        .await
        .expect_err("not the whole cluster");

    let stranger = Config::new(kube.url().parse().expect("a URL"));
    let stranger: Api<PodObject> = Api::all(Client::try_from(stranger).expect("a client"));
    assert_eq!(
        refusal(
            stranger
                .list(&ListParams::default())
                .await
                .expect_err("no token")
        )
        .0,
        401
    );
}

#[tokio::test]
async fn annotations_are_read_as_they_are_now() {
    let kube = cluster().await;
    kube.create_namespace("test", &[("team", "a")]);
    let uid = kube.create_service_account("test", "app", &[("role", "one")]);
    let client = client(&kube, AGENT).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "test");
    let role = async || {
        accounts.get("app").await.map(|app| {
            (
                app.metadata.annotations.unwrap_or_default()["role"].clone(),
                app.metadata.uid,
            )
        })
    };
    assert_eq!(
        role().await.expect("found"),
        ("one".to_owned(), Some(uid.clone()))
    );
    kube.annotate_service_account("test", "app", &[("role", "two")]);
    assert_eq!(
        role().await.expect("found"),
        ("two".to_owned(), Some(uid.clone()))
    );
    assert_ne!(kube.create_service_account("test", "app", &[]), uid);
    let namespaces: Api<Namespace> = Api::all(client);
    let namespace = namespaces.get("test").await.expect("found");
    assert_eq!(
        namespace.metadata.annotations.unwrap_or_default()["team"],
        "a"
    );
}

#[tokio::test]
async fn faults_strike_as_often_as_the_test_says() {
    let kube = cluster().await;
    let pods: Api<PodObject> = Api::all(client(&kube, AGENT).await);
    let list = async || pods.list(&ListParams::default()).await;
    kube.fail_times("list", "pods", Fault::Answer(429, Some(1)), 1);
    assert_eq!(refusal(list().await.expect_err("throttled")).0, 429);
    list().await.expect("only once");
    kube.fail("*", "pods", Fault::Answer(500, None));
    assert_eq!(refusal(list().await.expect_err("broken")).0, 500);
    kube.heal();
    kube.fail_times("list", "pods", Fault::Garbage, 1);
    list().await.expect_err("no JSON");
    kube.hang();
    let before = kube.count("list", "pods");
    let (answer, ()) = tokio::join!(list(), async {
        kube.until_requested("list", "pods", before + 1).await;
        kube.heal();
    });
    answer.expect("an answer once healed");
}
