//! Watches: what they tell, and how they end.

use futures::Stream;
use kube::runtime::watcher::{self, Event};

use super::*;

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
