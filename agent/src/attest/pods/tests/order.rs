//! Whose word counts where looks, the watch and its list say different things of a pod.

use super::*;

#[tokio::test]
async fn a_look_that_the_watch_has_overtaken_changes_nothing() {
    let pods = pods();
    pods.learn(read(&pod("20", true)), Source::Watch);
    pods.learn(read(&pod("19", false)), Source::Look);
    assert_eq!(host_network(&pods), Some(true));
    pods.learn(read(&pod("21", false)), Source::Look);
    assert_eq!(host_network(&pods), Some(false));
}

#[tokio::test]
async fn a_watch_that_is_behind_a_look_does_not_take_back_what_that_saw() {
    let pods = pods();
    pods.learn(read(&pod("18", false)), Source::List);
    pods.learn(read(&pod("21", true)), Source::Look);
    for version in ["19", "20"] {
        pods.learn(read(&pod(version, false)), Source::Watch);
        assert_eq!(host_network(&pods), Some(true), "{version}");
    }
    pods.learn(read(&pod("21", true)), Source::Watch);
    pods.learn(read(&pod("22", false)), Source::Watch);
    assert_eq!(host_network(&pods), Some(false));
    // The watch is never behind itself, whatever the version numbers say.
    pods.learn(read(&pod("4", true)), Source::Watch);
    assert_eq!(host_network(&pods), Some(true));
}

/// As after a backup of etcd was restored.
#[tokio::test]
async fn a_watchs_list_counts_although_its_versions_are_older_than_a_looks() {
    let pods = pods();
    pods.learn(read(&pod("21", true)), Source::Look);
    pods.learn(read(&pod("3", false)), Source::List);
    assert_eq!(host_network(&pods), Some(false));
    pods.learn(read(&pod("4", true)), Source::Watch);
    assert_eq!(host_network(&pods), Some(true));
}

#[tokio::test]
async fn a_pod_deleted_during_a_look_does_not_come_back_with_it() {
    let pods = pods();
    pods.learn(read(&pod("20", true)), Source::Watch);
    pods.forget(&read(&pod("21", true)));
    pods.learn(read(&pod("20", true)), Source::Look);
    assert_eq!(host_network(&pods), None);
}
