//! How the root is learned in each place that an agent can be in, and what it reports where it cannot.

use super::super::{Anchor, AnchorError, CgroupDenial, QosClass};
use super::node::{A, B, Driver, Node, hybrid, levels, seen_from, v2};

const CLASSES: [QosClass; 3] = [
    QosClass::BestEffort,
    QosClass::Burstable,
    QosClass::Guaranteed,
];

/// What process 1 of a node with systemd shows.
const INIT: &str = "/init.scope";

const KIND: Node = Node {
    cgroup_root: Some("kubelet"),
    ..Node::PLAIN
};

const NESTED: Node = Node {
    prefix: "/docker/0a1b",
    driver: Driver::Cgroupfs,
    cgroup_root: Some("kubelet"),
    ..KIND
};

#[test]
fn on_a_hybrid_host_the_root_stands_before_the_own_pod() {
    for node in [Node::PLAIN, KIND, NESTED] {
        for class in CLASSES {
            let own = hybrid(&node.path(A, class));
            let anchor = Anchor::learn(&own, b"1:name=systemd:/\n0::/\n", A.pod, None);
            let anchor = anchor.expect("learned");
            assert_eq!(anchor.to_string(), node.root());
            let other = hybrid(&node.path(B, QosClass::Burstable));
            assert_eq!(anchor.parse(&other).map(|it| it.pod), Ok(B.pod));
        }
    }
}

#[test]
fn in_the_hosts_cgroup_namespace_the_root_stands_before_the_own_pod() {
    for class in CLASSES {
        let own = v2(&Node::PLAIN.path(A, class));
        let anchor = Anchor::learn(&own, &v2(INIT), A.pod, None).expect("learned");
        assert_eq!(anchor.to_string(), "/kubepods.slice");
        let other = v2(&Node::PLAIN.path(B, QosClass::Guaranteed));
        assert_eq!(anchor.parse(&other).map(|it| it.pod), Ok(B.pod));
    }
}

#[test]
fn a_slice_that_begins_like_a_pods_directory_is_no_pod() {
    for (prefix, cgroup_root, root) in [
        ("", "pods", "/pods.slice/pods-kubepods.slice"),
        (
            "/my.slice",
            "my-pods",
            "/my.slice/my-pods.slice/my-pods-kubepods.slice",
        ),
    ] {
        let node = Node {
            prefix,
            cgroup_root: Some(cgroup_root),
            ..Node::PLAIN
        };
        let own = v2(&node.path(A, QosClass::Burstable));
        let anchor = Anchor::learn(&own, &v2(INIT), A.pod, None).expect("learned");
        assert_eq!(anchor.to_string(), root);
        assert_eq!(anchor.parse(&own).map(|it| it.pod), Ok(A.pod));
    }
}

#[test]
fn in_a_private_cgroup_namespace_every_class_sees_pods_of_every_class_and_no_others() {
    for node in [Node::PLAIN, KIND, NESTED] {
        for class in CLASSES {
            let reader = node.path(A, class);
            let sees = |path: &str| v2(&seen_from(&reader, path));
            let init = sees(INIT);
            let learned = Anchor::learn(b"0::/\n", &init, A.pod, Some(class)).expect("learned");
            let described = learned.to_string();
            assert!(described.starts_with("the directory "), "{described}");
            let told = Anchor::with_root(&node.root(), b"0::/\n", &init).expect("it fits");
            for anchor in [learned, told] {
                for target in CLASSES {
                    let text = sees(&node.path(B, target));
                    assert_eq!(anchor.parse(&text).map(|it| it.pod), Ok(B.pod), "{anchor}");
                    let outer = sees(&format!("/user.slice{}", node.path(B, target)));
                    assert_eq!(
                        anchor.parse(&outer),
                        Err(CgroupDenial::OutsideRoot),
                        "{anchor}"
                    );
                }
                let beside = sees(&format!(
                    "{}/cri-containerd-x.scope",
                    node.pod_path(A.pod, class)
                ));
                for text in [sees(&reader), beside] {
                    assert_eq!(anchor.parse(&text), Err(CgroupDenial::SamePodElided));
                }
                assert_eq!(anchor.parse(&sees("/")), Err(CgroupDenial::OutsideRoot));
                assert_eq!(
                    anchor.parse(&sees(&node.root())),
                    Err(CgroupDenial::NotAPod)
                );
            }
        }
    }
}

#[test]
fn in_a_private_cgroup_namespace_the_class_must_be_known() {
    let init = v2(&seen_from(&Node::PLAIN.path(A, QosClass::Burstable), INIT));
    assert_eq!(
        Anchor::learn(b"0::/\n", &init, A.pod, None).map(|_| ()),
        Err(AnchorError::UnknownQos)
    );
    // For a guaranteed pod, the same depth means a root one level further down.
    let anchor =
        Anchor::learn(b"0::/\n", &init, A.pod, Some(QosClass::Guaranteed)).expect("learned");
    let other = seen_from(
        &Node::PLAIN.path(A, QosClass::Burstable),
        &Node::PLAIN.path(B, QosClass::Guaranteed),
    );
    assert_eq!(anchor.parse(&v2(&other)), Err(CgroupDenial::OutsideRoot));
}

#[test]
fn without_host_pids_the_agent_is_told_so() {
    for class in CLASSES {
        let own = Node::PLAIN.path(A, class);
        let pause = format!(
            "{}/cri-containerd-{}.scope",
            Node::PLAIN.pod_path(A.pod, class),
            B.container
        );
        for init in [&own, &pause] {
            let (absolute, init) = (v2(&own), v2(init));
            let learned = Anchor::learn(&absolute, &init, A.pod, Some(class));
            assert_eq!(learned.map(|_| ()), Err(AnchorError::NoHostPid));
            let told = Anchor::with_root("/kubepods.slice", &absolute, &init);
            assert_eq!(told.map(|_| ()), Err(AnchorError::NoHostPid));
        }
        for init in [&own, &pause] {
            let init = v2(&seen_from(&own, init));
            let learned = Anchor::learn(b"0::/\n", &init, A.pod, Some(class));
            assert_eq!(learned.map(|_| ()), Err(AnchorError::NoHostPid));
        }
    }
    let told = Anchor::with_root("/kubepods.slice", b"0::/\n", b"0::/../x.scope\n");
    assert_eq!(told.map(|_| ()), Err(AnchorError::NoHostPid));
    assert!(AnchorError::NoHostPid.to_string().contains("hostPID: true"));
}

#[test]
fn a_service_of_the_node_must_be_told_the_root() {
    let own = v2("/system.slice/latchkey.service");
    let learned = Anchor::learn(&own, &v2(INIT), A.pod, None).map(|_| ());
    assert_eq!(learned, Err(AnchorError::NotInPod));
    assert!(
        AnchorError::NotInPod
            .to_string()
            .contains("identity.kubepods_root")
    );
    let anchor = Anchor::with_root("/kubepods.slice", &own, &v2(INIT)).expect("told");
    let pod = v2(&Node::PLAIN.path(B, QosClass::BestEffort));
    assert_eq!(anchor.parse(&pod).map(|it| it.pod), Ok(B.pod));
}

#[test]
fn a_process_of_a_node_whose_init_is_in_the_root_cgroup_can_be_told_the_root() {
    let all_at_the_top = b"2:cpu:/\n1:name=systemd:/\n0::/\n";
    assert!(Anchor::with_root("/kubepods", all_at_the_top, all_at_the_top).is_ok());
}

#[test]
fn a_root_that_the_agents_own_pod_is_not_under_is_refused() {
    let own = v2(&Node::PLAIN.path(A, QosClass::Guaranteed));
    let told = Anchor::with_root("/kubepods", &own, &v2(INIT)).map(|_| ());
    assert_eq!(told, Err(AnchorError::OwnPodElsewhere("/kubepods".into())));
    let init = v2(&seen_from(&NESTED.path(A, QosClass::Guaranteed), INIT));
    let told = Anchor::with_root("/kubepods", b"0::/\n", &init).map(|_| ());
    assert_eq!(
        told,
        Err(AnchorError::DepthMismatch {
            depth: 6,
            level: 1,
            root: "/kubepods".into()
        })
    );
    assert_eq!(levels(&NESTED.path(A, QosClass::Guaranteed)), 6);
}

#[test]
fn the_uid_of_another_pod_is_refused() {
    let own = v2(&Node::PLAIN.path(B, QosClass::Guaranteed));
    assert_eq!(
        Anchor::learn(&own, &v2(INIT), A.pod, None).map(|_| ()),
        Err(AnchorError::OtherPod {
            found: B.pod,
            own: A.pod
        })
    );
}

#[test]
fn an_agent_that_could_not_attest_itself_does_not_start() {
    let own = v2(&format!(
        "{}/kata_{}",
        Node::PLAIN.pod_path(A.pod, QosClass::Guaranteed),
        A.container
    ));
    assert_eq!(
        Anchor::learn(&own, &v2(INIT), A.pod, None).map(|_| ()),
        Err(AnchorError::OwnCgroup(CgroupDenial::BadContainerId))
    );
}

#[test]
fn hierarchies_with_different_roots_are_left_to_the_operator() {
    let path = Node::PLAIN.path(A, QosClass::Guaranteed);
    let own = format!("2:cpu:/docker/x{path}\n1:pids:{path}\n");
    assert_eq!(
        Anchor::learn(own.as_bytes(), &v2("/"), A.pod, None).map(|_| ()),
        Err(AnchorError::RootsDisagree(
            "/docker/x/kubepods.slice".into(),
            "/kubepods.slice".into()
        ))
    );
    let told = Anchor::with_root("/kubepods.slice", own.as_bytes(), &v2("/"));
    assert_eq!(
        told.expect("told").parse(own.as_bytes()).map(|it| it.pod),
        Ok(A.pod)
    );
}

#[test]
fn a_node_in_a_pod_of_another_cluster_is_learned_from_the_inner_pod() {
    let outer = Node::PLAIN.path(B, QosClass::Burstable);
    let path = |process| format!("{outer}{}", NESTED.path(process, QosClass::BestEffort));
    let anchor = Anchor::learn(&v2(&path(A)), &v2(&outer), A.pod, None).expect("learned");
    assert_eq!(anchor.parse(&v2(&path(A))).map(|it| it.pod), Ok(A.pod));
    assert_eq!(anchor.parse(&v2(&outer)), Err(CgroupDenial::OutsideRoot));
}

#[test]
fn a_root_is_learned_from_a_runtime_with_the_wrong_driver() {
    let name = |stem: &str| {
        let uid = A.pod.to_string().replace('-', "_");
        format!(
            "/{stem}-burstable-pod{uid}.slice:cri-containerd:{}",
            A.container
        )
    };
    for (stem, root) in [
        ("kubepods", "/kubepods.slice"),
        ("a-b-kubepods", "/a.slice/a-b.slice/a-b-kubepods.slice"),
    ] {
        let name = name(stem);
        let own = format!("2:cpu:/system.slice/containerd.service{name}\n1:rdma:{name}\n");
        let anchor = Anchor::learn(own.as_bytes(), &v2(INIT), A.pod, None).expect("learned");
        assert_eq!(anchor.to_string(), root);
    }
}

#[test]
fn files_that_are_missing_or_make_no_sense_are_refused() {
    for (own, init, file) in [
        (&b""[..], &b"0::/\n"[..], "/proc/self/cgroup"),
        (b"0::/\n", b"", "/proc/1/cgroup"),
        (b"0::/\n", b"0::/a/../b\n", "/proc/1/cgroup"),
    ] {
        let reason = CgroupDenial::Malformed;
        let refused = Err(AnchorError::Malformed { file, reason });
        assert_eq!(Anchor::learn(own, init, A.pod, None).map(|_| ()), refused);
        assert_eq!(
            Anchor::with_root("/kubepods", own, init).map(|_| ()),
            refused
        );
    }
}

#[test]
fn a_cgroup_namespace_outside_a_pod_is_too_shallow() {
    let learned = Anchor::learn(b"0::/\n", b"0::/../..\n", A.pod, None).map(|_| ());
    assert_eq!(learned, Err(AnchorError::TooShallow(2)));
    let burstable = Some(QosClass::Burstable);
    let learned = Anchor::learn(b"0::/\n", b"0::/../../..\n", A.pod, burstable).map(|_| ());
    assert_eq!(learned, Err(AnchorError::TooShallow(3)));
}

#[test]
fn the_depth_is_that_of_the_unified_hierarchy() {
    let reader = Node::PLAIN.path(A, QosClass::Guaranteed);
    let init = format!("3:cpu:/..\n0::{}\n", seen_from(&reader, INIT));
    let own = b"3:cpu:/\n0::/\n";
    assert!(Anchor::learn(own, init.as_bytes(), A.pod, Some(QosClass::Guaranteed)).is_ok());
    let hidden = b"3:cpu:/../../..\n0::/\n";
    let learned = Anchor::learn(own, hidden, A.pod, Some(QosClass::Guaranteed)).map(|_| ());
    assert_eq!(learned, Err(AnchorError::UnknownDepth));
}
