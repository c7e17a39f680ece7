//! What a workload is, and who can make one.

use super::pods::Settings;
use super::pods::tests::{known, node, pod, status_id, tell, tell_deleted, uid, workload};
use super::*;
use crate::peer::tests::{connected_child, pinned};
use k8s_openapi::api::core::v1 as k8s;
use std::collections::HashMap;

pub(super) fn container(digit: &str) -> ContainerId {
    ContainerId::from_status(&status_id(digit)).expect("an id")
}

pub(super) fn statuses(digits: &[&str]) -> Option<Vec<k8s::ContainerStatus>> {
    let statuses = digits.iter().map(|digit| k8s::ContainerStatus {
        name: (*digit).to_owned(),
        container_id: Some(status_id(digit)),
        ..k8s::ContainerStatus::default()
    });
    Some(statuses.collect())
}

pub(super) fn at(container: Option<ContainerId>, entrance: Entrance) -> InPod {
    InPod {
        pod: uid(),
        container,
        nested_pod: false,
        entrance,
    }
}

/// Runs `work` on a peer pinned by `pinning`, which lives meanwhile.
pub(super) fn with_peer<T>(pinning: Pinning, work: impl FnOnce(&Peer) -> T) -> T {
    let (stream, _child) = connected_child();
    work(&pinned(&stream, pinning))
}

/// A principal of the machine, or the pod of a sidecar.
fn principal() -> Arc<Pod> {
    let facts = Facts::of_principal("test", "app", "");
    Arc::new(Pod::new(None, facts, &Settings::default()))
}

#[tokio::test]
async fn a_container_is_confirmed_when_the_api_server_has_named_it() {
    let mut named = pod("20", false);
    named.status.get_or_insert_default().container_statuses = statuses(&["1"]);
    let pods = known(named);
    for (id, confirmed) in [
        (Some(container("1")), true),
        (Some(container("2")), false),
        (None, false),
    ] {
        let workload = workload(&pods, id);
        assert_eq!(workload.container(), id);
        assert_eq!(workload.container_confirmed(), confirmed);
        assert!(!workload.is_volume());
    }
    let volume = node(&pods).of_volume(uid()).expect("it is known");
    assert!(volume.is_volume() && volume.container().is_none() && !volume.container_confirmed());
}

#[tokio::test]
async fn a_workload_may_ask_until_its_pod_has_finished_or_is_deleted() {
    let running = pod("20", false);
    let mut finished = pod("21", false);
    finished.status.get_or_insert_default().phase = Some("Succeeded".into());
    for is_deleted in [false, true] {
        let pods = known(running.clone());
        let workload = workload(&pods, None);
        let attestor = Attestor::Kubernetes(Arc::new(node(&pods)));
        assert!(attestor.knows(uid()) && attestor.may_still_ask(&workload));
        match is_deleted {
            false => tell(&pods, &finished),
            true => tell_deleted(&pods, &running),
        }
        assert!(!attestor.may_still_ask(&workload), "{is_deleted}");
        assert_eq!(attestor.knows(uid()), !is_deleted);
    }
}

#[tokio::test]
async fn the_log_names_a_workload_by_its_pod_and_who_cannot_be_attested_by_its_process() {
    let pods = known(pod("20", false));
    assert_eq!(workload(&pods, None).to_string(), "test/web");
    let id = container("1");
    let named = workload(&pods, Some(id)).to_string();
    assert_eq!(named, format!("test/web/{id}"));
    let attestor = Attestor::Kubernetes(Arc::new(node(&pods)));
    let (stream, child) = connected_child();
    let guess = attestor.guess(&stream);
    assert_eq!(guess, (i32::try_from(child.id()).ok(), None));
}

#[tokio::test]
async fn an_attestor_knows_the_places_of_its_own_kind_alone() {
    let principals = HashMap::from([(4711, principal())]);
    let local = Attestor::Local(Local::new(principals).expect("what everybody may see"));
    let kubernetes = Attestor::Kubernetes(Arc::new(node(&known(pod("20", false)))));
    let sidecar = Attestor::Sidecar(principal());
    let locations = [
        Location::Local(4711),
        Location::OwnPod,
        Location::Pod(at(Some(container("1")), Entrance::Shared)),
        Location::Volume,
        Location::Local(4712),
    ];
    with_peer(Pinning::ByPidfd, |peer| {
        for (attestor, own) in [(&local, 0), (&sidecar, 1), (&kubernetes, 2)] {
            let all = attestor.pods();
            let [entry] = &*all else {
                panic!("{all:?}");
            };
            for (number, location) in locations.into_iter().enumerate() {
                let workload = attestor.known(peer, location).expect("nobody is denied");
                let is_entry = workload.map(|workload| Arc::ptr_eq(workload.pod(), entry));
                assert_eq!(is_entry, (number == own).then_some(true), "{location:?}");
            }
        }
        let location = sidecar.locate(peer, Entrance::Shared);
        assert_eq!(location, Ok(Location::OwnPod));
    });
    for attestor in [&local, &sidecar] {
        assert!(attestor.missing().is_empty() && attestor.node().is_none());
    }
    let node = kubernetes.node().expect("it is one of a node");
    assert!(node.is_of("node") && !node.is_of("other"));
}

#[test]
fn what_the_agent_itself_is_short_of_denies_nobody() {
    use nix::errno::Errno;
    let outcome = |errno: Errno| AttestError::from(PeerError::Io(errno.into()));
    for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS] {
        assert_eq!(outcome(errno), AttestError::NotYet("exhausted"));
    }
    let denied = AttestError::Denied(Denial::UnreadablePeer);
    assert_eq!(outcome(Errno::EACCES), denied);
}
