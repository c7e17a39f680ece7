//! What the pods know when, whoever tells it first.

use super::*;
use crate::config;

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

fn pods() -> Pods {
    let client = client();
    let settings = Settings {
        limits: config::Limits::default(),
        cache: Arc::new(config::Cache::default()),
    };
    Pods::new(client, "node", settings)
}

/// A client that asks nobody.
fn client() -> kube::Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let nowhere = "http://127.0.0.1:9".parse().expect("a URL");
    kube::Client::try_from(kube::Config::new(nowhere)).expect("a client")
}

fn pod(version: &str, host_network: bool) -> k8s::Pod {
    let mut pod = k8s::Pod::default();
    pod.metadata.uid = Some(UID.into());
    pod.metadata.name = Some("web".into());
    pod.metadata.namespace = Some("test".into());
    pod.metadata.resource_version = Some(version.into());
    pod.spec = Some(k8s::PodSpec {
        host_network: Some(host_network),
        ..k8s::PodSpec::default()
    });
    pod
}

fn host_network(pods: &Pods) -> Option<bool> {
    let uid = UID.parse().expect("a UID");
    pods.by_uid(uid).map(|pod| pod.facts().host_network)
}

#[tokio::test]
async fn a_look_that_the_watch_has_overtaken_changes_nothing() {
    let pods = pods();
    pods.learn(pod("20", true), Source::Watch);
    pods.learn(pod("19", false), Source::Look);
    assert_eq!(host_network(&pods), Some(true));
    pods.learn(pod("21", false), Source::Look);
    assert_eq!(host_network(&pods), Some(false));
    // The watch is never behind itself, whatever the numbers say.
    pods.learn(pod("3", true), Source::Watch);
    assert_eq!(host_network(&pods), Some(true));
}

#[tokio::test]
async fn a_pod_deleted_during_a_look_does_not_come_back_with_it() {
    let pods = pods();
    pods.learn(pod("20", true), Source::Watch);
    pods.forget(pod("21", true));
    pods.learn(pod("20", true), Source::Look);
    assert_eq!(host_network(&pods), None);
}
