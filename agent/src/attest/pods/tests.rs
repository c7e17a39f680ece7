//! What is known about pods and when, whoever reports it first.

mod order;

use super::*;
use crate::attest::cgroup::ContainerId;
use crate::attest::node::Node;
use crate::attest::{Entrance, InPod, Location, Workload};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{
    self as k8s, ContainerState, ContainerStateTerminated, ContainerStatus, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

fn pods() -> Pods {
    pods_of(client())
}

/// Pods after the watch has reported this one.
pub(in crate::attest) fn known(pod: k8s::Pod) -> Arc<Pods> {
    known_all([pod])
}

/// Pods after the watch has reported these.
pub(in crate::attest) fn known_all(told: impl IntoIterator<Item = k8s::Pod>) -> Arc<Pods> {
    let pods = Arc::new(pods());
    for pod in told {
        pods.learn(read(&pod), Source::Watch);
    }
    pods
}

/// Has the watch report the pod as it is now.
pub(in crate::attest) fn tell(pods: &Pods, pod: &k8s::Pod) {
    pods.learn(read(pod), Source::Watch);
}

/// Has the watch report that the pod is deleted.
pub(in crate::attest) fn tell_deleted(pods: &Pods, pod: &k8s::Pod) {
    pods.forget(&read(pod));
}

/// The pod, as the agent reads it from the API server's answer.
fn read(pod: &k8s::Pod) -> Listed {
    let answer = serde_json::to_value(pod).expect("JSON");
    serde_json::from_value(answer).expect("a pod")
}

pub(in crate::attest) fn pods_of(client: kube::Client) -> Pods {
    let failures = IntCounter::new("failures", "how often").expect("a counter");
    Pods::new(client, "node", Settings::default(), failures)
}

/// A client that sends nothing.
fn client() -> kube::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let nowhere = "http://127.0.0.1:9".parse().expect("a URL");
    kube::Client::try_from(kube::Config::new(nowhere)).expect("a client")
}

/// A client whose API server answers every list with these pods, or with 500.
pub(in crate::attest) fn answered(pods: Option<Vec<k8s::Pod>>) -> kube::Client {
    told(move |_| match &pods {
        Some(pods) => (200, list(pods)),
        None => (500, "out of order".to_owned()),
    })
}

fn list(pods: &[k8s::Pod]) -> String {
    let list = serde_json::json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "20"}, "items": pods,
    });
    list.to_string()
}

/// A client whose API server answers every list with this pod, after a while, and how many lists have begun.
pub(in crate::attest) fn slow(
    pod: k8s::Pod,
    takes: Duration,
    lists: &Arc<AtomicUsize>,
) -> kube::Client {
    let (text, lists) = (list(&[pod]), lists.clone());
    let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
        lists.fetch_add(1, Ordering::SeqCst);
        let body = kube::client::Body::from(text.clone().into_bytes());
        async move {
            sleep(takes).await;
            Ok::<_, std::convert::Infallible>(http::Response::new(body))
        }
    });
    kube::Client::new(service, "default")
}

/// A client whose API server gives this answer: status and text.
fn told(answer: impl Fn(&http::Uri) -> (u16, String) + Send + Sync + 'static) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (status, text) = answer(request.uri());
        let body = kube::client::Body::from(text.into_bytes());
        let answer = http::Response::builder().status(status).body(body);
        std::future::ready(answer)
    });
    kube::Client::new(service, "default")
}

pub(in crate::attest) fn pod(version: &str, host_network: bool) -> k8s::Pod {
    let mut pod = k8s::Pod::default();
    pod.metadata.uid = Some(UID.into());
    pod.metadata.name = Some("web".into());
    pod.metadata.namespace = Some("test".into());
    pod.metadata.resource_version = Some(version.into());
    pod.spec = Some(k8s::PodSpec {
        host_network: Some(host_network),
        node_name: Some("node".into()),
        ..k8s::PodSpec::default()
    });
    pod
}

pub(in crate::attest) fn uid() -> PodUid {
    UID.parse().expect("a UID")
}

pub(in crate::attest) fn node(pods: &Arc<Pods>) -> Node {
    Node::new(
        pods.clone(),
        "node".into(),
        None,
        Duration::ZERO,
        Vec::new(),
    )
}

impl Workload {
    /// Whoever has that pod's volume.
    pub(crate) fn synthetic(pod: Pod) -> Self {
        Self {
            facts: pod.facts(),
            pod: Arc::new(pod),
            location: Location::Volume,
        }
    }
}

/// A process of that container in the pod, as it is known now.
pub(in crate::attest) fn workload(pods: &Arc<Pods>, container: Option<ContainerId>) -> Workload {
    let volume = node(pods).of_volume(uid()).expect("it is known");
    Workload {
        location: Location::Pod(InPod {
            pod: uid(),
            container,
            nested_pod: false,
            entrance: Entrance::Shared,
        }),
        ..volume
    }
}

pub(in crate::attest) fn status_id(digit: &str) -> String {
    format!("containerd://{}", digit.repeat(64))
}

fn host_network(pods: &Pods) -> Option<bool> {
    pods.by_uid(uid()).map(|pod| pod.facts().host_network)
}

#[tokio::test]
async fn what_all_pods_of_the_node_leave_unread_has_one_bound() {
    /// What one pod may leave unread; all pods together may leave four times that.
    const WHOLE: u64 = 8 << 20;
    let pods = known_all((0..5).map(|byte| {
        let mut pod = pod("20", false);
        pod.metadata.uid = Some(PodUid::synthetic(byte).to_string());
        pod
    }));
    let pods = pods.all();
    let rooms = pods.iter().map(|pod| pod.quota.answer(WHOLE));
    let rooms: Vec<_> = rooms.collect();
    assert_eq!(rooms.len(), 5);
    assert_eq!(rooms.iter().flatten().count(), 4);
}

#[tokio::test]
async fn a_workload_is_current_until_its_pod_is_told_anew_or_deleted() {
    let pods = Arc::new(pods());
    pods.learn(read(&pod("20", false)), Source::Watch);
    let first = workload(&pods, None);
    assert!(first.is_current());
    pods.learn(read(&pod("21", false)), Source::Watch);
    assert!(first.is_current(), "the same word again");
    pods.learn(read(&pod("22", true)), Source::Watch);
    assert!(!first.is_current());
    let second = workload(&pods, None);
    assert!(second.is_current());
    pods.forget(&read(&pod("23", true)));
    assert!(!second.is_current());
}

#[tokio::test]
async fn workloads_are_the_same_by_their_container_and_by_their_pods_entry() {
    let pods = Arc::new(pods());
    pods.learn(read(&pod("20", false)), Source::Watch);
    let [one, other] = ["1", "2"].map(|digit| ContainerId::from_status(&status_id(digit)));
    assert!(one.is_some() && one != other);
    let first = workload(&pods, one);
    assert!(first.same_as(&workload(&pods, one)));
    assert!(!first.same_as(&workload(&pods, other)));
    assert!(!first.same_as(&workload(&pods, None)));
    // What was done on behalf of a dropped entry belongs to nobody.
    pods.forget(&read(&pod("21", false)));
    pods.learn(read(&pod("22", false)), Source::Watch);
    assert!(!first.same_as(&workload(&pods, one)));
    // But nothing was moved.
    assert!(first.is_where(&workload(&pods, one)));
    assert!(!first.is_where(&workload(&pods, other)));
}

#[tokio::test]
async fn a_list_drops_what_it_does_not_name_but_for_what_was_found_after_it_began() {
    let pods = Arc::new(pods());
    pods.learn(read(&pod("20", false)), Source::Watch);
    let known = workload(&pods, None);
    pods.keep(&HashSet::from([uid()]), Instant::now());
    assert!(known.is_current());
    pods.keep(&HashSet::new(), Instant::now());
    assert!(!known.is_current());
    assert_eq!(host_network(&pods), None);
    // A look that was under way still names it.
    pods.learn(read(&pod("20", false)), Source::Look);
    assert_eq!(host_network(&pods), None);

    let pods = self::pods();
    let before = Instant::now();
    pods.learn(read(&pod("20", false)), Source::Look);
    let doubted = pods.keep(&HashSet::new(), before);
    assert_eq!(host_network(&pods), Some(false));
    assert_eq!(doubted, [uid()]);
    assert!(pods.keep(&HashSet::from([uid()]), before).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_began_when_a_pod_was_found_knows_better() {
    let pods = pods();
    pods.learn(read(&pod("20", false)), Source::Look);
    assert!(pods.keep(&HashSet::new(), Instant::now()).is_empty());
    assert_eq!(host_network(&pods), None);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_remembered_for_as_long_as_a_look_from_before_it_may_take() {
    let pods = pods();
    let delete = |byte| pods.drop_entry(PodUid::synthetic(byte), true);
    let is_remembered = |byte| pods.deleted.lock().contains_key(&PodUid::synthetic(byte));
    delete(1);
    tokio::time::advance(LOOK_TIMEOUT * 2 - Duration::from_millis(1)).await;
    delete(2);
    assert!(is_remembered(1));
    tokio::time::advance(Duration::from_millis(1)).await;
    delete(3);
    assert_eq!([1, 2, 3].map(is_remembered), [false, true, true]);
}

#[tokio::test]
async fn a_pod_in_doubt_stays_if_a_list_of_now_names_it() {
    let there = Some(vec![pod("20", false)]);
    for (answer, stays) in [(there, true), (Some(Vec::new()), false), (None, false)] {
        let is_answered = answer.is_some();
        let pods = pods_of(answered(answer));
        pods.learn(read(&pod("20", false)), Source::Look);
        let entry = pods.by_uid(uid()).expect("it is known");
        pods.confirm(vec![uid()]).await;
        assert_eq!(!entry.is_gone(), stays);
        assert_eq!(host_network(&pods).is_some(), stays);
        // A pod that merely could not be confirmed is found by the next look; a deleted one is not.
        pods.learn(read(&pod("20", false)), Source::Look);
        assert_eq!(host_network(&pods).is_some(), stays || !is_answered);
    }
}

#[tokio::test]
async fn whoever_is_not_in_doubt_stays_whatever_the_list_says() {
    let pods = pods_of(answered(Some(Vec::new())));
    pods.learn(read(&pod("20", false)), Source::Watch);
    pods.confirm(vec![PodUid::synthetic(7)]).await;
    assert_eq!(host_network(&pods), Some(false));
}

#[tokio::test]
async fn a_restarted_container_is_known_by_both_of_its_ids() {
    let ended = ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(status_id("1")),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    };
    let mut pod = pod("20", false);
    pod.status = Some(PodStatus {
        container_statuses: Some(vec![ContainerStatus {
            name: "app".into(),
            container_id: Some(status_id("2")),
            last_state: Some(ended),
            ..ContainerStatus::default()
        }]),
        ..PodStatus::default()
    });
    let (_, facts) = Facts::of(read(&pod)).expect("a pod");
    for digit in ["1", "2"] {
        let id = ContainerId::from_status(&status_id(digit)).expect("an id");
        assert_eq!(facts.containers[&id].name, "app");
    }
}

#[test]
fn a_deleted_pod_may_ask_until_its_grace_period_and_two_seconds_more_are_over() {
    for (seconds_ago, ended) in [(-30, false), (0, false), (4, true)] {
        let mut deleted = pod("20", false);
        let end = crate::time::now() - SignedDuration::from_secs(seconds_ago);
        deleted.metadata.deletion_timestamp = Some(Time(end));
        let (_, facts) = Facts::of(read(&deleted)).expect("a pod");
        assert_eq!(facts.grace_ended(), ended, "{seconds_ago}");
    }
}

/// Without a pod it is on the machine's own network.
#[test]
fn a_principal_has_the_network_of_its_pod_if_it_has_one() {
    for (name, host_network) in [("", true), ("web", false)] {
        let facts = Facts::of_principal("test", "app", name);
        assert_eq!((&*facts.name, facts.host_network), (name, host_network));
    }
}

#[test]
fn an_exemption_keeps_only_the_names_of_containers_that_are_there_and_is_for_all_if_it_is_too_long()
{
    let mut exempting = pod("20", false);
    let annotations = exempting.metadata.annotations.get_or_insert_default();
    let listed = format!("{}; app ,{}", ",".repeat(5000), "other,".repeat(1000));
    annotations.insert(crate::role::EKS_SKIP_CONTAINERS.to_owned(), listed);
    annotations.insert("somebody.example/note".to_owned(), "app".to_owned());
    let status = exempting.status.get_or_insert_default();
    status.container_statuses = crate::attest::tests::statuses(&["1", "2"]).map(|mut statuses| {
        statuses[0].name = "app".to_owned();
        statuses[1].name = "web".to_owned();
        statuses
    });
    let exempts = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        BTreeMap::from([(crate::role::EKS_SKIP_CONTAINERS.to_owned(), names)])
    };
    let (_, facts) = Facts::of(read(&exempting)).expect("a pod");
    assert_eq!(facts.exempt, exempts(&["app"]));
    let annotations = exempting.metadata.annotations.get_or_insert_default();
    let listed = "other,".repeat(10_000);
    annotations.insert(crate::role::EKS_SKIP_CONTAINERS.to_owned(), listed);
    let (_, facts) = Facts::of(read(&exempting)).expect("a pod");
    let all = exempts(&["app", "web"]);
    assert_eq!(facts.exempt, all, "it is not looked into");
    // While none of the named containers is known, it still matters which one makes a request.
    exempting.status = None;
    let (_, facts) = Facts::of(read(&exempting)).expect("a pod");
    assert!(facts.exempts_containers());
}

/// What a watch that waits for an answer does not show yet.
#[tokio::test(start_paused = true)]
async fn a_look_that_fails_or_gets_no_answer_is_counted_as_a_failed_list() {
    let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, http::Error>>()
    });
    let cases = [
        (answered(Some(vec![])), 0),
        (answered(None), 1),
        (kube::Client::new(silent, "default"), 1),
    ];
    for (client, expected) in cases {
        let pods = pods_of(client);
        assert_eq!(pods.look().await.is_err(), expected > 0);
        assert_eq!(pods.failures.get(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn pods_are_synced_once_the_first_list_is_complete() {
    let pods = pods_of(answered(Some(vec![pod("20", false)])));
    let mut synced = std::pin::pin!(pods.synced());
    assert!((&mut synced).now_or_never().is_none() && !pods.is_synced());
    tokio::select! {
        () = pods.follow() => unreachable!("it goes on for ever"),
        () = &mut synced => {}
    }
    assert!(pods.is_synced() && pods.by_uid(uid()).is_some());
}

/// How many lists are requested in a minute from an API server that answers so.
async fn lists_in_a_minute(
    answer: impl Fn(&http::Uri) -> (u16, String) + Send + Sync + 'static,
) -> u64 {
    let lists = Arc::new(AtomicU64::new(0));
    let counts = lists.clone();
    let pods = pods_of(told(move |uri| {
        let is_watch = uri
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        counts.fetch_add(u64::from(!is_watch), Ordering::Relaxed);
        answer(uri)
    }));
    let followed = timeout(Duration::from_secs(60), pods.follow()).await;
    followed.expect_err("it goes on for ever");
    lists.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_lists_nothing_is_asked_less_and_less_often() {
    let lists = lists_in_a_minute(|_| (500, "out of order".to_owned())).await;
    // With waits of 0.2, 0.4, 0.8, 1.6 and then 3 seconds.
    assert!((20..=25).contains(&lists), "{lists}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_fails_is_begun_again_without_a_list() {
    let lists = lists_in_a_minute(|uri| match uri.query() {
        Some(query) if query.contains("watch=true") => (500, "out of order".to_owned()),
        _ => (200, list(&[pod("20", false)])),
    });
    assert_eq!(lists.await, 1);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_forgets_what_it_has_just_listed_is_asked_less_and_less_often() {
    let gone = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    });
    let event = serde_json::json!({"type": "ERROR", "object": gone});
    // Kubernetes says it in the stream.
    for (status, answer) in [(410, gone.to_string()), (200, format!("{event}\n"))] {
        let lists = lists_in_a_minute(move |uri| match uri.query() {
            Some(query) if query.contains("watch=true") => (status, answer.clone()),
            _ => (200, list(&[pod("20", false)])),
        });
        let lists = lists.await;
        assert!((20..=25).contains(&lists), "{status}: {lists}");
    }
}

#[tokio::test]
async fn who_waits_for_a_change_of_the_pods_hears_of_what_a_look_has_found() {
    let pods = pods_of(answered(Some(vec![pod("20", false)])));
    let changed = pods.changed();
    pods.look().await.expect("a list");
    let changed = timeout(Duration::from_secs(5), changed).await;
    changed.expect("it is told");
}

#[tokio::test]
async fn of_a_pod_asked_for_by_name_nothing_is_learned_if_it_is_another_one() {
    let pods = pods_of(told(|_| {
        let pod = serde_json::to_string(&pod("20", false));
        (200, pod.expect("JSON"))
    }));
    let other = PodUid::synthetic(7);
    let found = pods.know(other, "test", "web").await.expect("an answer");
    assert!(found.is_none() && pods.all().is_empty());
    let found = pods.know(uid(), "test", "web").await.expect("an answer");
    assert_eq!(found.and_then(|pod| pod.uid), Some(uid()));
}
