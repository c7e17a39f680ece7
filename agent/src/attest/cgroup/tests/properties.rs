//! What holds for every file, checked on many.

use proptest::prelude::*;
use proptest::sample::select;

use super::super::{Anchor, ContainerId, PodUid, QosClass};
use super::node::{A, B, Driver, Node, Process, Runtime, hybrid, levels, seen_from, v2};

fn nodes() -> impl Strategy<Value = Node> {
    let prefixes = vec![
        "",
        "/kubepods",
        "/docker/93529524695bb00d91c1f6dba692ea8d3550c3b94fb2463af7bc9ec82f992d26",
        "/system.slice/docker-0a.scope",
        "/machine.slice/libpod-0a.scope/container",
        "/ecs/409b8b89ccd746bdb9b5e03418406d96/409b8b89ccd746bdb9b5e03418406d96-3057940393",
        "/mesos/3b1cf944-1d97-40a6-ac73-b156ac2f2bfe",
        "/user.slice/user-1001.slice/user@1001.service/k3s-rootless.service",
    ];
    let cgroup_roots = vec![None, Some("kubelet"), Some("pods")];
    let drivers = vec![Driver::Cgroupfs, Driver::Systemd];
    let runtimes = vec![
        Runtime::Containerd,
        Runtime::CriDockerd,
        Runtime::CriO,
        Runtime::CriOBare,
    ];
    (
        select(prefixes),
        select(cgroup_roots),
        select(drivers),
        select(runtimes),
    )
        .prop_map(|(prefix, cgroup_root, driver, runtime)| Node {
            prefix,
            cgroup_root,
            driver,
            runtime,
        })
}

fn classes() -> impl Strategy<Value = QosClass> {
    select(vec![
        QosClass::BestEffort,
        QosClass::Burstable,
        QosClass::Guaranteed,
    ])
}

fn processes() -> impl Strategy<Value = Process> {
    ("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[0-9a-f]{64}").prop_map(|(uid, id)| Process {
        pod: uid.parse::<PodUid>().expect("a UID"),
        container: id.parse::<ContainerId>().expect("an id"),
    })
}

/// Names of all kinds, most of which mean something somewhere.
fn names() -> impl Strategy<Value = String> {
    let victim = B.pod;
    let slice = victim.to_string().replace('-', "_");
    let known = vec![
        "kubepods".to_owned(),
        "kubepods.slice".to_owned(),
        "kubelet.slice".to_owned(),
        "kubelet-kubepods.slice".to_owned(),
        "burstable".to_owned(),
        "besteffort".to_owned(),
        "kubepods-burstable.slice".to_owned(),
        "system.slice".to_owned(),
        "containerd.service".to_owned(),
        "init.scope".to_owned(),
        "x (deleted)".to_owned(),
        "..".to_owned(),
        "a:b".to_owned(),
        format!("pod{victim}"),
        format!("pod{}", victim.simple()),
        format!("kubepods-pod{slice}.slice"),
        format!("kubepods-burstable-pod{slice}.slice"),
        format!(
            "kubepods-burstable-pod{slice}.slice:cri-containerd:{}",
            B.container
        ),
        B.container.to_string(),
        format!("cri-containerd-{}.scope", B.container),
        format!("crio-conmon-{}.scope", B.container),
    ];
    prop_oneof![4 => select(known), 1 => "[^/\n\0]{1,24}"]
}

/// Anchors that describe the same node in each of the possible ways.
fn anchors(node: &Node, reader: QosClass) -> Vec<(String, Anchor)> {
    let own = node.path(A, reader);
    let init = v2(&seen_from(&own, "/init.scope"));
    let root = node.root();
    vec![
        ("/".into(), Anchor::new(&root, None).expect("a root")),
        (
            "/".into(),
            Anchor::learn(&v2(&own), &v2("/"), A.pod, None).expect("learned"),
        ),
        (
            "/".into(),
            Anchor::with_root(&root, &v2(&own), &v2("/")).expect("told"),
        ),
        (
            own.clone(),
            Anchor::new(&root, Some(levels(&own))).expect("a depth"),
        ),
        (
            own.clone(),
            Anchor::learn(b"0::/\n", &init, A.pod, Some(reader)).expect("learned"),
        ),
        (
            own,
            Anchor::with_root(&root, b"0::/\n", &init).expect("told"),
        ),
    ]
}

proptest! {
    #[test]
    fn every_pod_is_found_from_everywhere(
        node in nodes(), reader in classes(), class in classes(), target in processes(),
    ) {
        prop_assume!(target.pod != A.pod);
        let path = node.path(target, class);
        for (from, anchor) in anchors(&node, reader) {
            let place = anchor.parse(&v2(&seen_from(&from, &path)));
            prop_assert_eq!(place.map(|it| (it.pod, it.container)), Ok((target.pod, target.container)));
            prop_assert!(!place.expect("a pod").nested_pod);
        }
        let place = Anchor::new(&node.root(), None).expect("a root").parse(&hybrid(&path));
        prop_assert_eq!(place.map(|it| it.pod), Ok(target.pod));
    }

    #[test]
    fn what_stands_below_a_container_never_changes_the_pod(
        node in nodes(), reader in classes(), class in classes(), target in processes(),
        below in prop::collection::vec(names(), 1..6),
    ) {
        prop_assume!(target.pod != A.pod);
        let path = format!("{}/{}", node.path(target, class), below.join("/"));
        let is_lawful = !below.iter().any(|name| name == "." || name == "..")
            && !path.ends_with(" (deleted)");
        for (from, anchor) in anchors(&node, reader) {
            match anchor.parse(&v2(&seen_from(&from, &path))) {
                Ok(place) => {
                    prop_assert_eq!((place.pod, place.container), (target.pod, target.container));
                    prop_assert!(is_lawful);
                }
                Err(denial) => prop_assert!(!is_lawful, "{denial}"),
            }
        }
    }

    #[test]
    fn lines_with_different_pods_prove_none(
        node in nodes(), class in classes(), other_class in classes(),
        one in processes(), other in processes(), elsewhere in "(/[a-z.]{1,9}){0,2}", first in any::<bool>(),
    ) {
        prop_assume!(one != other);
        let mut lines = [
            format!("3:cpu:{}\n", node.path(one, class)),
            format!("2:pids:{elsewhere}{}\n", node.path(other, other_class)),
        ];
        if first {
            lines.reverse();
        }
        let text = format!("4:rdma:/\n{}0::/\n", lines.concat());
        let anchor = Anchor::new(&node.root(), None).expect("a root");
        prop_assert!(anchor.parse(text.as_bytes()).is_err(), "{}", text);
    }

    #[test]
    fn nothing_is_a_pod_without_the_exact_root_before_it(
        node in nodes(), lines in prop::collection::vec(prop::collection::vec(names(), 0..9), 1..4),
        target in processes(), class in classes(), cut in 0_usize..4, added in names(),
    ) {
        let root = node.root();
        let anchor = Anchor::new(&root, None).expect("a root");
        let mut paths: Vec<_> = lines.iter().map(|names| format!("/{}", names.join("/"))).collect();
        // A pod's real path in which one outer name is another or missing.
        let real = node.path(target, class);
        let mut names: Vec<_> = real.split('/').skip(1).collect();
        let cut = cut.min(levels(&root) - 1);
        names[cut] = &added;
        paths.push(format!("/{}", names.join("/")));
        names.remove(cut);
        paths.push(format!("/{}", names.join("/")));
        for path in &paths {
            if anchor.parse(&v2(path)).is_ok() {
                let mismatch = path.contains(".slice:cri-containerd:")
                    && !path.contains(&target.pod.to_string());
                prop_assert!(path.starts_with(&format!("{root}/")) || mismatch, "{}", path);
            }
        }
    }

    #[test]
    fn inside_a_cgroup_namespace_only_the_roots_own_levels_have_pods(
        node in nodes(), reader in classes(), class in classes(), target in processes(),
        up in 0_usize..12, cut in 0_usize..8,
    ) {
        let own = node.path(A, reader);
        let path = node.path(target, class);
        let names: Vec<_> = path.split('/').skip(1).skip(cut).collect();
        let text = v2(&format!("{}/{}", "/..".repeat(up), names.join("/")));
        let climb = levels(&own) - levels(&node.root());
        for (from, anchor) in anchors(&node, reader) {
            if let Ok(place) = anchor.parse(&text) {
                prop_assert_eq!((place.pod, place.container), (target.pod, target.container));
                if from == "/" {
                    prop_assert_eq!(up, 0);
                } else {
                    prop_assert!(up >= 2 && (up == climb || up + 1 == climb));
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        node in nodes(), reader in classes(), noise in prop::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(), byte in any::<u8>(), target in processes(),
    ) {
        let mut broken = hybrid(&node.path(target, reader));
        let at = at.index(broken.len());
        broken[at] = byte;
        for text in [&noise, &broken, &broken[..at].to_vec()] {
            for (_, anchor) in anchors(&node, reader) {
                let _ = anchor.parse(text);
            }
            let _ = Anchor::learn(text, text, target.pod, Some(reader));
            let _ = Anchor::with_root(&String::from_utf8_lossy(text), text, text);
        }
    }

    #[test]
    fn one_changed_byte_gives_another_answer_or_none_but_no_other_known_pod(
        node in nodes(), class in classes(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let anchor = Anchor::new(&node.root(), None).expect("a root");
        let mut text = v2(&node.path(A, class));
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(place) = anchor.parse(&text) {
            let text = String::from_utf8_lossy(&text).replace('_', "-");
            prop_assert!(text.contains(&place.pod.to_string()));
            prop_assert!(text.contains(&place.container.to_string()));
        }
    }
}
