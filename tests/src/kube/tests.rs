use std::time::Duration;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod as PodObject, ServiceAccount};
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
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

type Events =
    std::pin::Pin<Box<dyn Stream<Item = Result<Event<PodObject>, watcher::Error>> + Send>>;

/// What the agent does: this node's pods, listed and then watched.
async fn watch_node(kube: &FakeKube) -> Events {
    let pods: Api<PodObject> = Api::all(client(kube, AGENT).await);
    let config = watcher::Config::default().fields("spec.nodeName=n1");
    watcher::watcher(pods, config).boxed()
}

async fn next(events: &mut Events) -> String {
    let event = tokio::time::timeout(PATIENCE, events.next())
        .await
        .expect("an event in time");
    let name = |pod: PodObject| pod.metadata.name.unwrap_or_default();
    match event.expect("a watcher never ends") {
        Ok(Event::Init) => "init".to_owned(),
        Ok(Event::InitApply(pod)) => format!("init {}", name(pod)),
        Ok(Event::InitDone) => "done".to_owned(),
        Ok(Event::Apply(pod)) => format!("apply {}", name(pod)),
        Ok(Event::Delete(pod)) => format!("delete {}", name(pod)),
        Err(error) => format!("error: {error}"),
    }
}

async fn expect(events: &mut Events, expected: &[&str]) {
    for expected in expected {
        assert_eq!(next(events).await, *expected);
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
async fn a_watcher_sees_this_nodes_pods_come_change_and_go() {
    let kube = cluster().await;
    let elsewhere = kube.create_pod(PodSpec {
        node: "n2".into(),
        ..pod_named("elsewhere")
    });
    let web = kube.create_pod(pod_named("web"));
    let mut events = watch_node(&kube).await;
    expect(&mut events, &["init", "init web", "done"]).await;

    let late = kube.create_pod(pod_named("late"));
    web.set_container("app", &"a".repeat(64));
    expect(&mut events, &["apply late", "apply web"]).await;
    elsewhere.set_node("n1");
    late.set_node("n2");
    web.delete();
    expect(
        &mut events,
        &["apply elsewhere", "delete late", "delete web"],
    )
    .await;
    assert_eq!(
        (kube.count("list", "pods"), kube.count("watch", "pods")),
        (1, 1)
    );
}

#[tokio::test]
async fn a_bookmark_moves_a_quiet_watch_past_a_compaction() {
    let kube = cluster().await;
    let mut events = watch_node(&kube).await;
    let polled = tokio::spawn(async move {
        expect(&mut events, &["init", "done", "apply web"]).await;
    });
    kube.until(|kube| kube.watches() == 1).await;
    kube.create_namespace("other", &[]);
    kube.compact();
    kube.watch_bookmark();
    // The watch continues from the bookmark; from the revision of its own list it could not.
    kube.watch_close();
    kube.until_requested("watch", "pods", 2).await;
    kube.create_pod(pod_named("web"));
    polled.await.expect("the pod is seen");
    assert_eq!(kube.count("list", "pods"), 1);
}

#[tokio::test]
async fn a_watch_that_expires_begins_again_with_a_list() {
    let kube = cluster().await;
    let web = kube.create_pod(pod_named("web"));
    let mut events = watch_node(&kube).await;
    expect(&mut events, &["init", "init web", "done"]).await;
    // The first list's watch is refused: its revision is gone by then.
    web.delete();
    kube.compact();
    let first = next(&mut events).await;
    assert!(
        first.starts_with("error") && first.contains("too old"),
        "{first}"
    );
    expect(&mut events, &["init", "done"]).await;
}

#[tokio::test]
async fn an_old_watch_is_gone_by_http_status_where_the_server_is_like_that() {
    let config = FakeKubeConfig {
        gone_as_status: true,
        ..FakeKubeConfig::default()
    };
    let kube = cluster_with(config).await;
    let old = kube.revision().to_string();
    kube.compact();
    let pods: Api<PodObject> = Api::all(client(&kube, AGENT).await);
    let refused = pods.watch(&WatchParams::default(), &old).await;
    let (code, message) = refusal(refused.err().expect("gone"));
    assert!(
        code == 410 && message.contains("too old resource version"),
        "{code} {message}"
    );
    assert_eq!(kube.watches(), 0);
}

#[tokio::test]
async fn a_watcher_survives_a_restart_and_a_server_that_is_away() {
    let kube = cluster().await;
    let web = kube.create_pod(pod_named("web"));
    let mut events = watch_node(&kube).await;
    expect(&mut events, &["init", "init web", "done"]).await;
    let polled = tokio::spawn(async move { (next(&mut events).await, events) });
    kube.until(|kube| kube.watches() == 1).await;
    kube.stop_listening().await;
    assert_eq!(kube.watches(), 0);
    let (_, mut events) = polled.await.expect("the cut is noticed");
    let refused = next(&mut events).await;
    assert!(refused.starts_with("error"), "{refused}");
    web.delete();
    kube.resume_listening().await.expect("it listens");
    loop {
        let event = next(&mut events).await;
        if !event.starts_with("error") {
            assert_eq!(event, "delete web");
            break;
        }
    }
    kube.stop_listening().await;
    kube.resume_listening().await.expect("it listens");
}

#[tokio::test]
async fn events_are_held_delayed_and_lost_as_the_test_says() {
    let kube = cluster().await;
    let mut events = watch_node(&kube).await;
    expect(&mut events, &["init", "done"]).await;
    kube.watch_hold();
    let web = kube.create_pod(pod_named("web"));
    let held = tokio::time::timeout(Duration::from_millis(100), events.next()).await;
    assert!(held.is_err(), "a held event arrived");
    kube.watch_release();
    expect(&mut events, &["apply web"]).await;

    kube.watch_delay(Duration::from_millis(200));
    let begin = std::time::Instant::now();
    kube.create_pod(pod_named("slow"));
    expect(&mut events, &["apply slow"]).await;
    assert!(begin.elapsed() >= Duration::from_millis(200));
    kube.watch_delay(Duration::ZERO);

    web.delete_unseen();
    kube.create_pod(pod_named("after"));
    expect(&mut events, &["apply after"]).await;
}

#[tokio::test]
async fn a_streaming_list_is_served_or_refused_as_the_server_is_new_or_old() {
    for watch_list in [true, false] {
        let kube = cluster_with(FakeKubeConfig {
            watch_list,
            ..FakeKubeConfig::default()
        })
        .await;
        kube.create_pod(pod_named("web"));
        let pods: Api<PodObject> = Api::all(client(&kube, AGENT).await);
        let config = watcher::Config::default()
            .fields("spec.nodeName=n1")
            .streaming_lists();
        let mut events: Events = watcher::watcher(pods, config).boxed();
        if watch_list {
            expect(&mut events, &["init", "init web", "done"]).await;
        } else {
            let errors = [next(&mut events).await, next(&mut events).await];
            assert!(
                errors
                    .iter()
                    .any(|error| error.contains("WatchList feature gate")),
                "{errors:?}"
            );
        }
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

#[tokio::test]
async fn a_plain_watch_ends_after_its_timeout_and_carries_bookmarks() {
    let kube = cluster_with(FakeKubeConfig {
        bookmark_interval: Duration::from_millis(50),
        ..FakeKubeConfig::default()
    })
    .await;
    let pods: Api<PodObject> = Api::all(client(&kube, AGENT).await);
    let from = kube.revision().to_string();
    let watch = pods
        .watch(&WatchParams::default().timeout(1), &from)
        .await
        .expect("a watch");
    let events: Vec<_> = watch.try_collect().await.expect("a clean end");
    assert!(!events.is_empty());
    assert!(
        events
            .iter()
            .all(|event| matches!(event, WatchEvent::Bookmark(_))),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_long_history_is_forgotten_and_a_watch_that_fell_behind_is_told() {
    let kube = cluster().await;
    let pod = kube.create_pod(pod_named("web"));
    let mut events = watch_node(&kube).await;
    expect(&mut events, &["init", "init web", "done"]).await;
    let reader = tokio::spawn(async move { (next(&mut events).await, events) });
    kube.until(|kube| kube.watches() == 1).await;
    kube.watch_hold();
    for _ in 0..10_000 {
        pod.set_phase("Running");
    }
    kube.watch_release();
    let (first, mut events) = reader.await.expect("an answer");
    assert!(first.contains("too old"), "{first}");
    expect(&mut events, &["init", "init web", "done"]).await;
}
