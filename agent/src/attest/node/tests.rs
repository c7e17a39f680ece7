//! Who is a workload, given where the peer is and what the API server says about that pod.

use super::*;
use crate::attest::Attestor;
use crate::attest::pods::tests::{answered, known, known_all, node, pod, pods_of, slow, uid};
use crate::attest::tests::{at, container, statuses, with_peer};
use crate::peer::tests::{connected_child, pinned};
use k8s_openapi::api::core::v1 as k8s;
use std::sync::atomic::{AtomicUsize, Ordering};

#[tokio::test]
async fn nobody_is_located_before_the_kubepods_root_is_known() {
    let node = Arc::new(node(&known(pod("20", false))));
    let attestor = Attestor::Kubernetes(node.clone());
    let locate = || {
        with_peer(Pinning::ByPidfd, |peer| {
            attestor.locate(peer, Entrance::Shared)
        })
    };
    let (list, root) = ("the list of this node's pods", "the node's kubepods root");
    assert_eq!(attestor.missing(), [list, root]);
    assert_eq!(locate(), Err(AttestError::NotYet("kubepods_root")));
    // A root that this test is not below, wherever it runs.
    let elsewhere = Anchor::new("/no-pods-here/kubepods", None).expect("a root");
    node.anchor(elsewhere);
    assert_eq!(attestor.missing(), [list]);
    let denied = locate().expect_err("it is in no pod below that root");
    assert!(
        matches!(denied, AttestError::Denied(why) if why != Denial::UnreadablePeer),
        "{denied}"
    );
}

#[tokio::test]
async fn a_node_knows_its_own_pods_and_no_other() {
    let node = node(&known(pod("20", false)));
    assert!(node.knows(uid()));
    assert!(!node.knows(PodUid::synthetic(7)));
}

#[tokio::test]
async fn who_asks_before_the_kubepods_root_is_known_waits_for_it() {
    let node = node(&known(pod("20", false)));
    let (stream, _child) = connected_child();
    let peer = pinned(&stream, Pinning::ByPidfd);
    let learns = async {
        tokio::task::yield_now().await;
        node.anchor(Anchor::new("/no-pods-here/kubepods", None).expect("a root"));
    };
    let (attested, ()) = tokio::join!(node.attest(&peer, Entrance::Shared), learns);
    let denied = attested.expect_err("it is in no pod below that root");
    assert!(matches!(denied, AttestError::Denied(_)), "{denied}");
}

#[tokio::test]
async fn by_number_who_connects_on_the_nodes_network_is_denied_whatever_the_pods_own_network_is() {
    const DENIED: Option<AttestError> = Some(AttestError::Denied(Denial::HostNetworkWithoutPidfd));
    let (shared, own) = (Entrance::Shared, Entrance::Pod(uid()));
    for (pinning, entrance, denied) in [
        (Pinning::ByNumber, shared, DENIED),
        (Pinning::ByNumber, own, None),
        (Pinning::ByPidfd, shared, None),
    ] {
        for host_network in [true, false] {
            let node = node(&known(pod("20", host_network)));
            let in_pod = at(Some(container("1")), entrance);
            // The test's own child: it is on the network of the first process.
            let outcome = with_peer(pinning, |peer| node.known(peer, in_pod));
            let case = format!("{host_network} {pinning:?} {entrance:?}");
            assert_eq!(outcome.err(), denied, "{case}");
        }
    }
}

#[tokio::test]
async fn an_ephemeral_container_is_denied_and_beside_it_who_is_not_named() {
    let mut debugged = pod("20", false);
    let status = debugged.status.get_or_insert_default();
    status.container_statuses = statuses(&["1"]);
    let quiet = debugged.clone();
    let status = debugged.status.get_or_insert_default();
    status.ephemeral_container_statuses = statuses(&["2"]);
    let spec = debugged.spec.as_mut().expect("one");
    spec.ephemeral_containers = Some(vec![k8s::EphemeralContainer::default()]);
    let outcome = |pod: &k8s::Pod, digit| {
        let node = node(&known(pod.clone()));
        let in_pod = at(Some(container(digit)), Entrance::Shared);
        let known = with_peer(Pinning::ByPidfd, |peer| node.known(peer, in_pod));
        known.map(|workload| workload.is_some())
    };
    let denied = Err(AttestError::Denied(Denial::EphemeralContainer));
    let all = ["1", "2", "3"].map(|digit| outcome(&debugged, digit));
    assert_eq!(all, [Ok(true), denied, Ok(false)]);
    // Without ephemeral containers, a container that just started need not be named.
    let all = ["1", "3"].map(|digit| outcome(&quiet, digit));
    assert_eq!(all, [Ok(true), Ok(true)]);
}

/// The pod, in a sandbox by its RuntimeClass.
fn sandboxed() -> k8s::Pod {
    let mut pod = pod("20", false);
    pod.spec.as_mut().expect("one").runtime_class_name = Some("gvisor".into());
    pod
}

/// A cgroup of a container in that pod.
fn cgroup(pod: PodUid) -> Result<PodCgroup, CgroupDenial> {
    Ok(PodCgroup {
        pod,
        container: container("1"),
        nested_pod: true,
    })
}

fn other_uid() -> PodUid {
    "00000000-0000-4000-8000-000000000000"
        .parse()
        .expect("a UID")
}

/// A node whose agent is in the pod `own_pod`.
fn node_of(own_pod: Option<PodUid>, pods: Arc<Pods>) -> Node {
    let gvisor = vec!["gvisor".to_owned()];
    Node::new(pods, "node".into(), own_pod, Duration::ZERO, gvisor)
}

#[tokio::test]
async fn a_peer_is_where_its_cgroup_and_its_entrance_say_and_not_in_the_agents_own_pod() {
    let node = node_of(Some(other_uid()), known(sandboxed()));
    let (shared, own) = (Entrance::Shared, Entrance::Pod(uid()));
    for entrance in [shared, own] {
        let located = InPod {
            pod: uid(),
            container: Some(container("1")),
            nested_pod: true,
            entrance,
        };
        assert_eq!(node.located(cgroup(uid()), entrance), Ok(located));
        // The agent's own pod is denied, whatever the socket.
        let denied = node.located(cgroup(other_uid()), entrance);
        assert_eq!(denied, Err(AttestError::Denied(Denial::OwnPod)));
        let denied = node.located(Err(CgroupDenial::Deleted), entrance);
        assert_eq!(
            denied,
            Err(AttestError::Denied(Denial::Cgroup(CgroupDenial::Deleted)))
        );
    }
    let by_anothers = node.located(cgroup(uid()), Entrance::Pod(other_uid()));
    assert_eq!(
        by_anothers,
        Err(AttestError::Denied(Denial::ListenerMismatch))
    );
    // In no pod: where a runtime is configured, the socket may be enough.
    let nowhere = Err(CgroupDenial::NotAPod);
    assert_eq!(node.located(nowhere, own), Ok(at(None, own)));
    let denied = Err(AttestError::Denied(Denial::Cgroup(CgroupDenial::NotAPod)));
    assert_eq!(node.located(nowhere, shared), denied);
    let without = super::tests::node(&known(sandboxed()));
    assert_eq!(without.located(nowhere, own), denied);
}

#[tokio::test]
async fn an_agents_own_are_in_its_pod_or_in_another_one_of_its_account() {
    let denied = |why| Err(AttestError::Denied(why));
    let agent = || pod("20", false);
    let mut other = pod("21", false);
    other.metadata.uid = Some(other_uid().to_string());
    let mut foreign = other.clone();
    foreign.spec.as_mut().expect("one").service_account_name = Some("other".into());
    let in_pod = || {
        Ok(InPod {
            pod: other_uid(),
            ..at(None, Entrance::Shared)
        })
    };
    for (other, expected) in [(other, Ok(())), (foreign, denied(Denial::AnotherAccount))] {
        let node = node_of(Some(uid()), known_all([agent(), other]));
        assert_eq!(node.is_among_own(in_pod()), expected);
        for own in [Denial::OwnPod, Denial::Cgroup(CgroupDenial::SamePodElided)] {
            assert_eq!(node.is_among_own(Err(AttestError::Denied(own))), Ok(()));
        }
        let outside = node.is_among_own(Err(AttestError::Denied(Denial::Cgroup(
            CgroupDenial::NotAPod,
        ))));
        assert_eq!(outside, denied(Denial::Cgroup(CgroupDenial::NotAPod)));
    }
    let unknown = node_of(Some(uid()), known(agent())).is_among_own(in_pod());
    assert_eq!(unknown, Err(AttestError::NotYet("own_pod")));
    // An agent outside of all pods has no other agent in a pod.
    let outside = node_of(None, known(agent()));
    assert_eq!(
        outside.is_among_own(Err(AttestError::Denied(Denial::Cgroup(
            CgroupDenial::NotAPod
        )))),
        Ok(())
    );
    assert_eq!(
        outside.is_among_own(in_pod()),
        denied(Denial::AnotherAccount)
    );
}

#[tokio::test]
async fn only_pods_of_the_runtimes_named_are_taken_for_what_their_socket_says() {
    for (pod, runtimes, expected) in [
        (sandboxed(), vec!["kata", "gvisor"], true),
        (sandboxed(), vec!["kata"], false),
        (sandboxed(), Vec::new(), false),
        (pod("20", false), vec!["gvisor"], false),
    ] {
        let runtimes = runtimes.into_iter().map(str::to_owned).collect();
        let node = Node::new(known(pod), "node".into(), None, Duration::ZERO, runtimes);
        let in_pod = at(None, Entrance::Pod(uid()));
        let known = with_peer(Pinning::ByPidfd, |peer| node.known(peer, in_pod));
        let not_a_pod = AttestError::Denied(Denial::Cgroup(CgroupDenial::NotAPod));
        assert_eq!(known.err(), (!expected).then_some(not_a_pod));
    }
}

#[tokio::test]
async fn a_sandbox_is_looked_for_once_as_any_other_unknown_pod() {
    let (stream, _child) = connected_child();
    let peer = pinned(&stream, Pinning::ByPidfd);
    for (found, expected) in [
        (Some(vec![sandboxed()]), None),
        (
            Some(vec![pod("20", false)]),
            Some(AttestError::Denied(Denial::Cgroup(CgroupDenial::NotAPod))),
        ),
        (
            Some(Vec::new()),
            Some(AttestError::Denied(Denial::UnknownPod)),
        ),
        (None, Some(AttestError::NotYet("api_server"))),
    ] {
        let node = node_of(None, Arc::new(pods_of(answered(found))));
        node.anchor(Anchor::new("/no-pods-here/kubepods", None).expect("a root"));
        let attested = node.attest(&peer, Entrance::Pod(uid())).await;
        assert_eq!(attested.err(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_goes_on_if_whoever_began_it_leaves() {
    let (stream, _child) = connected_child();
    let peer = pinned(&stream, Pinning::ByPidfd);
    let lists = Arc::new(AtomicUsize::new(0));
    let takes = Duration::from_millis(2500);
    let node = node_of(None, Arc::new(pods_of(slow(sandboxed(), takes, &lists))));
    node.anchor(Anchor::new("/no-pods-here/kubepods", None).expect("a root"));
    let impatient = async || {
        let attested = node.attest(&peer, Entrance::Pod(uid()));
        timeout_at(Instant::now() + Duration::from_secs(1), attested).await
    };
    for _ in 0..3 {
        assert!(impatient().await.is_err());
    }
    assert!(matches!(impatient().await, Ok(Ok(_))));
    tokio::time::sleep(takes * 4).await;
    assert_eq!(
        lists.load(Ordering::SeqCst),
        2,
        "the second is for all who came during the first"
    );
}

#[tokio::test]
async fn no_files_are_read_for_a_pod_that_may_not_ask() {
    type Change = fn(&mut k8s::Pod);
    let changes: [(Denial, Change); 3] = [
        (Denial::OtherNode, |pod| {
            pod.spec.as_mut().expect("one").node_name = Some("other".into());
        }),
        (Denial::PodFinished, |pod| {
            pod.status.get_or_insert_default().phase = Some("Failed".into());
        }),
        (Denial::StaticPod, |pod| {
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert("kubernetes.io/config.mirror".into(), "x".into());
        }),
    ];
    for (why, change) in changes {
        let mut pod = pod("20", false);
        change(&mut pod);
        let denied = node(&known(pod)).of_volume(uid()).err();
        assert_eq!(denied, Some(AttestError::Denied(why)));
    }
}
