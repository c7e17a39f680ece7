//! Paths in which a parser that searches for a pod finds the wrong one.
//!
//! The first ones are in the corpus too, as rows among many; here they say what is at stake.

use super::super::{Anchor, CgroupDenial, QosClass};
use super::node::{A, B, Node, seen_from, v2};
use super::parse;

const ROOT: &str = "/kubepods.slice";

/// The name of the victim's pod below the root, and its container.
fn victim() -> String {
    Node::PLAIN.path(B, QosClass::Guaranteed)[ROOT.len()..].to_owned()
}

#[test]
fn a_cgroup_named_like_another_pod_below_a_container_changes_nothing_but_is_noticed() {
    let path = Node::PLAIN.path(A, QosClass::BestEffort);
    let place = parse(ROOT, &format!("0::{path}\n")).expect("a pod");
    assert!(!place.nested_pod);
    for spoof in [
        format!("{path}{}", victim()),
        format!("{path}/x{ROOT}{}", victim()),
    ] {
        let place = parse(ROOT, &format!("0::{spoof}\n")).expect("still a pod");
        assert_eq!((place.pod, place.container), (A.pod, A.container));
        assert!(place.nested_pod);
    }
}

#[test]
fn a_host_users_own_kubepods_root_is_outside_the_kubelets() {
    let delegated = "/user.slice/user-1001.slice/user@1001.service/k3s-rootless.service";
    for text in [
        format!("0::{delegated}{ROOT}{}\n", victim()),
        format!("0::{delegated}/kubepods/pod{}/{}\n", B.pod, B.container),
    ] {
        assert_eq!(parse(ROOT, &text), Err(CgroupDenial::OutsideRoot), "{text}");
    }
}

#[test]
fn a_host_users_own_kubepods_root_is_outside_also_for_a_reader_in_a_cgroup_namespace() {
    for class in [
        QosClass::BestEffort,
        QosClass::Burstable,
        QosClass::Guaranteed,
    ] {
        let reader = Node::PLAIN.path(A, class);
        let depth = super::node::levels(&reader);
        let anchor = Anchor::new(ROOT, Some(depth)).expect("a reader's depth");
        let spoof = format!("/user.slice/user-1001.slice{ROOT}{}", victim());
        let text = v2(&seen_from(&reader, &spoof));
        assert_eq!(anchor.parse(&text), Err(CgroupDenial::OutsideRoot));
    }
}

#[test]
fn a_removed_cgroup_or_one_that_is_named_like_it_is_nobodys() {
    let text = format!("0::{ROOT}{} (deleted)\n", victim());
    assert_eq!(parse(ROOT, &text), Err(CgroupDenial::Deleted));
    let text = format!("0::{ROOT}{}/x (deleted)\n", victim());
    assert_eq!(parse(ROOT, &text), Err(CgroupDenial::Deleted));
}

#[test]
fn the_monitor_of_a_container_is_not_the_container() {
    let pod = Node::PLAIN.pod_path(B.pod, QosClass::Burstable);
    for monitor in ["crio-conmon", "libpod-conmon"] {
        for place in [pod.as_str(), "/machine.slice", "/system.slice"] {
            let text = format!("0::{place}/{monitor}-{}.scope\n", B.container);
            assert_eq!(
                parse(ROOT, &text),
                Err(CgroupDenial::MonitorProcess),
                "{text}"
            );
        }
    }
}

#[test]
fn a_name_with_a_pods_name_in_it_is_not_that_pod() {
    for name in [
        "worker-pod{}-cache",
        "xpod{}",
        "pod{}x",
        "pod{}.slice",
        "my-pod{}",
    ] {
        let name = name.replace("{}", &B.pod.to_string());
        let text = format!("0::/kubepods/burstable/{name}/{}\n", B.container);
        assert!(parse("/kubepods", &text).is_err(), "{text}");
    }
}

#[test]
fn a_pods_name_outside_the_root_is_no_pod() {
    let text = format!("0::/vendor.slice/pod{}/{}\n", B.pod, B.container);
    assert_eq!(parse("/kubepods", &text), Err(CgroupDenial::OutsideRoot));
}

#[test]
fn a_way_up_after_the_first_name_is_malformed() {
    for path in [
        format!("/kubepods/../burstable/pod{}/{}", B.pod, B.container),
        format!("/x/../kubepods/pod{}/{}", B.pod, B.container),
        format!("/kubepods/pod{}/{}/..", B.pod, B.container),
        format!("/../../x/../pod{}/{}", B.pod, B.container),
    ] {
        assert_eq!(
            parse("/kubepods", &format!("0::{path}\n")),
            Err(CgroupDenial::Malformed)
        );
        let anchor = Anchor::new("/kubepods", Some(4)).expect("a reader's depth");
        assert_eq!(anchor.parse(&v2(&path)), Err(CgroupDenial::Malformed));
    }
}

#[test]
fn a_uid_with_two_kinds_of_separators_is_malformed() {
    let uid = B.pod.to_string().replacen('-', "_", 2);
    for path in [
        format!(
            "/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{}.scope",
            B.container
        ),
        format!("/kubepods.slice/pod{uid}/{}", B.container),
    ] {
        assert_eq!(
            parse(ROOT, &format!("0::{path}\n")),
            Err(CgroupDenial::Malformed)
        );
    }
}

#[test]
fn a_sibling_whose_name_begins_like_the_root_is_not_below_it() {
    for root in ["/kubepods.slice-x", "/kubepods.slicex", "/kubepods"] {
        let text = format!("0::{root}{}\n", victim());
        assert_eq!(parse(ROOT, &text), Err(CgroupDenial::OutsideRoot), "{text}");
    }
}

#[test]
fn a_container_of_the_agents_own_pod_cannot_name_another() {
    let anchor = Anchor::new(ROOT, Some(4)).expect("a reader's depth");
    for path in [
        "/",
        &victim(),
        &format!("/..{}", victim()),
        &format!("{ROOT}{}", victim()),
    ] {
        assert_eq!(
            anchor.parse(&v2(path)),
            Err(CgroupDenial::SamePodElided),
            "{path}"
        );
    }
}

#[test]
fn the_readers_own_class_never_stands_above_itself() {
    let own = Node::PLAIN.path(A, QosClass::Burstable);
    let init = v2(&seen_from(&own, "/init.scope"));
    let anchor =
        Anchor::learn(b"0::/\n", &init, A.pod, Some(QosClass::Burstable)).expect("learned");
    let below_root = &Node::PLAIN.path(B, QosClass::Burstable)[ROOT.len()..];
    assert_eq!(
        anchor.parse(&v2(&format!("/../../..{below_root}"))),
        Err(CgroupDenial::Malformed)
    );
}
