//! The parser on real files, hostile ones, and what can be made of both.

mod attacks;
mod corpus;
mod learning;
mod node;
mod properties;

use super::{Anchor, CgroupDenial, PodCgroup, QosClass};
use node::{A, B};

/// Parses `text` for a reader that sees absolute paths.
fn parse(root: &str, text: &str) -> Result<PodCgroup, CgroupDenial> {
    Anchor::new(root, None)
        .expect("a lawful root")
        .parse(text.as_bytes())
}

#[test]
fn a_container_id_is_read_from_a_pod_status() {
    use super::ContainerId;
    let id = A.container.to_string();
    assert_eq!(format!("{:?}", A.container), id);
    assert_eq!(
        ContainerId::from_status(&format!("containerd://{id}")),
        Some(A.container)
    );
    assert_eq!(
        ContainerId::from_status(&format!("cri-o://{id}")),
        Some(A.container)
    );
    for text in [
        id.as_str(),
        "",
        "containerd://",
        "docker://abc",
        &format!("://{id}"),
    ] {
        assert_eq!(ContainerId::from_status(text), None, "{text}");
    }
}

#[test]
fn a_pod_uid_is_read_in_its_canonical_form_only() {
    use super::PodUid;
    let text = "7a96c459-d529-44ae-9f99-90d3798d6426";
    let uid: PodUid = text.parse().expect("canonical");
    assert_eq!(uid.to_string(), text);
    assert_eq!(format!("{uid:?}"), text);
    assert_eq!(uid.simple().to_string(), text.replace('-', ""));
    for text in [
        text.to_uppercase(),
        text.replace('-', "_"),
        text.replace('-', ""),
        text.replace('-', "0"),
        format!("{{{text}}}"),
        String::new(),
    ] {
        assert!(text.parse::<PodUid>().is_err(), "{text}");
    }
}

#[test]
fn a_qos_class_is_read_as_the_api_server_spells_it() {
    for (text, class) in [
        ("BestEffort", QosClass::BestEffort),
        ("Burstable", QosClass::Burstable),
        ("Guaranteed", QosClass::Guaranteed),
    ] {
        assert_eq!(text.parse(), Ok(class));
    }
    assert!("guaranteed".parse::<QosClass>().is_err());
}

#[test]
fn a_root_is_an_absolute_path_with_the_name_of_a_kubepods_root() {
    for root in [
        "/kubepods",
        "/kubepods.slice",
        "/a/kubepods",
        "/b.slice/b-kubepods.slice",
    ] {
        let anchor = Anchor::new(root, None).expect(root);
        assert_eq!(anchor.to_string(), root);
    }
    for root in [
        "",
        "/",
        "kubepods",
        "x/kubepods",
        "/kubepods/",
        "//kubepods",
        "/../kubepods",
        "/a/../kubepods",
        "/kubepods/burstable",
        "/notkubepods.slice",
        "/kubepods (deleted)",
    ] {
        assert!(Anchor::new(root, None).is_err(), "{root:?}");
    }
}

#[test]
fn a_process_beside_the_containers_of_a_pod_is_in_no_container() {
    let denial = parse("/kubepods", &format!("0::/kubepods/pod{}\n", A.pod));
    assert_eq!(denial, Err(CgroupDenial::BadContainerId));
}

#[test]
fn a_pod_of_one_class_is_not_in_the_directory_of_another() {
    let text = format!(
        "0::/kubepods.slice/kubepods-burstable.slice/kubepods-besteffort-pod{}.slice/{}\n",
        A.pod.to_string().replace('-', "_"),
        A.container
    );
    assert_eq!(
        parse("/kubepods.slice", &text),
        Err(CgroupDenial::Malformed)
    );
}

#[test]
fn another_container_of_the_same_pod_in_another_hierarchy_is_a_disagreement() {
    let (pod, one, other) = (A.pod, A.container, B.container);
    let text = format!("2:cpu:/kubepods/pod{pod}/{one}\n1:pids:/kubepods/pod{pod}/{other}\n");
    assert_eq!(
        parse("/kubepods", &text),
        Err(CgroupDenial::ControllersDisagree)
    );
}

#[test]
fn a_line_outside_the_root_may_repeat_the_pod_but_not_prove_or_contradict_it() {
    let inside = format!("2:cpu:/kubepods/pod{}/{}\n", A.pod, A.container);
    let outside =
        |who: node::Process| format!("1:pids:/x/kubepods/pod{}/{}\n", who.pod, who.container);
    assert_eq!(
        parse("/kubepods", &(inside.clone() + &outside(A))).map(|it| it.pod),
        Ok(A.pod)
    );
    assert_eq!(
        parse("/kubepods", &(inside + &outside(B))),
        Err(CgroupDenial::ControllersDisagree)
    );
    assert_eq!(
        parse("/kubepods", &outside(A)),
        Err(CgroupDenial::OutsideRoot)
    );
}

#[test]
fn a_mismatched_driver_is_looked_for_beside_the_outermost_slice_only() {
    let uid = A.pod.to_string().replace('-', "_");
    let name = format!(
        "kubelet-kubepods-burstable-pod{uid}.slice:cri-containerd:{}",
        A.container
    );
    let root = "/node/kubelet.slice/kubelet-kubepods.slice";
    for place in ["/node", "/node/system.slice/containerd.service"] {
        let text = format!("0::{place}/{name}/init.scope\n");
        assert_eq!(parse(root, &text).map(|it| it.pod), Ok(A.pod), "{text}");
    }
    for place in [
        "",
        "/system.slice/containerd.service",
        "/node/user.slice",
        "/node/kubelet.slice",
    ] {
        let text = format!("0::{place}/{name}\n");
        assert_eq!(parse(root, &text), Err(CgroupDenial::OutsideRoot), "{text}");
    }
}

#[test]
fn a_mismatched_driver_is_containerds_only() {
    let uid = A.pod.to_string().replace('-', "_");
    for runtime in ["crio", "docker", "", "cri-containerd:x"] {
        let text = format!("0::/kubepods-pod{uid}.slice:{runtime}:{}\n", A.container);
        assert!(parse("/kubepods.slice", &text).is_err(), "{text}");
    }
}

#[test]
fn a_name_in_the_way_of_another_driver_or_kubelet_is_malformed() {
    let uid = A.pod.to_string().replace('-', "_");
    for (root, name) in [
        ("/kubepods", format!("kubepods-pod{uid}.slice")),
        (
            "/kubepods",
            format!("kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice"),
        ),
        ("/kubepods.slice", format!("pod{}", A.pod)),
        ("/kubepods.slice", format!("besteffort/pod{}", A.pod)),
        ("/kubepods.slice", format!("x-kubepods-pod{uid}.slice")),
        (
            "/x.slice/x-kubepods.slice",
            format!("kubepods-pod{uid}.slice"),
        ),
    ] {
        let text = format!("0::{root}/{name}/{}\n", A.container);
        assert_eq!(parse(root, &text), Err(CgroupDenial::Malformed), "{text}");
    }
}

#[test]
fn a_static_pods_name_outside_the_root_denies_a_pod_inside() {
    let inside = format!("2:cpu:/kubepods/pod{}/{}\n", A.pod, A.container);
    let text = format!("{inside}1:pids:/x/pod{}/{}\n", B.pod.simple(), B.container);
    assert_eq!(parse("/kubepods", &text), Err(CgroupDenial::OutsideRoot));
}

#[test]
fn a_spoof_in_one_hierarchy_is_noticed_whatever_the_others_say() {
    let path = format!("/kubepods/pod{}/{}", A.pod, A.container);
    let spoof = format!("3:cpu:{path}/pod{}/{}\n2:pids:{path}\n", B.pod, B.container);
    assert!(parse("/kubepods", &spoof).is_ok_and(|it| it.pod == A.pod && it.nested_pod));
}

#[test]
fn a_reader_of_absolute_paths_knows_nothing_above_them() {
    let text = format!("0::/../kubepods/pod{}/{}\n", A.pod, A.container);
    assert_eq!(parse("/kubepods", &text), Err(CgroupDenial::OutsideRoot));
    assert_eq!(
        parse("/kubepods", "0::/..\n"),
        Err(CgroupDenial::OutsideRoot)
    );
}

#[test]
fn a_reader_is_two_or_three_levels_below_the_root() {
    let fits = |depth| Anchor::new("/a/kubepods", Some(depth)).is_ok();
    assert_eq!(
        (0..9).filter(|depth| fits(*depth)).collect::<Vec<_>>(),
        [4, 5]
    );
}

#[test]
fn a_bad_line_denies_the_whole_file() {
    let good = format!("1:cpu:/kubepods/pod{}/{}\n", A.pod, A.container);
    assert!(parse("/kubepods", &good).is_ok());
    for bad in [
        "",
        "1:cpu",
        "x:cpu:/",
        ":cpu:/",
        "1:cpu:",
        "1:cpu:a",
        "1:cpu:/a/",
        "1:cpu:/a//b",
    ] {
        for text in [format!("{good}{bad}\n"), format!("{bad}\n{good}")] {
            assert_eq!(
                parse("/kubepods", &text),
                Err(CgroupDenial::Malformed),
                "{text:?}"
            );
        }
    }
    assert_eq!(parse("/kubepods", ""), Err(CgroupDenial::Malformed));
}

#[test]
fn in_a_cgroup_namespace_the_unified_line_alone_proves_a_pod() {
    let anchor = Anchor::new("/kubepods", Some(3)).expect("a guaranteed pod's depth");
    let path = format!("/../../pod{}/{}", A.pod, A.container);
    let parse = |text: String| anchor.parse(text.as_bytes());
    for other in ["/", "/..", "/../../..", &path] {
        assert_eq!(
            parse(format!("4:cpu:{other}\n0::{path}\n")).map(|it| it.pod),
            Ok(A.pod)
        );
    }
    for not_unified in ["4:cpu", "4:", "0:cpu"] {
        assert_eq!(
            parse(format!("{not_unified}:{path}\n0::/../../..\n")),
            Err(CgroupDenial::OutsideRoot)
        );
    }
}
