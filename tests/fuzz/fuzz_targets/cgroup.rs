//! Any bytes as a cgroup file: whoever comes back was named in it, below the root.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

// The module alone, so that the agent's clients of three clouds need not be built with it.
#[allow(
    dead_code,
    unused_imports,
    reason = "each target uses a part of the parser"
)]
#[path = "../../../agent/src/attest"]
mod attest {
    pub mod cgroup;
}

use attest::cgroup::Anchor;

/// A root and a reader's depth, so that every way of naming is met from inside and outside.
static ANCHORS: LazyLock<Vec<(&str, Option<usize>, Anchor)>> = LazyLock::new(|| {
    [
        ("/kubepods", None),
        ("/kubepods", Some(3)),
        ("/kubepods", Some(4)),
        ("/kubepods.slice", None),
        ("/kubepods.slice", Some(3)),
        ("/kubepods.slice", Some(4)),
        ("/kubelet.slice/kubelet-kubepods.slice", None),
        ("/kubelet.slice/kubelet-kubepods.slice", Some(5)),
    ]
    .into_iter()
    .map(|(root, depth)| {
        (
            root,
            depth,
            Anchor::new(root, depth).expect("a lawful anchor"),
        )
    })
    .collect()
});

fuzz_target!(|text: &[u8]| {
    for (root, depth, anchor) in ANCHORS.iter() {
        let Ok(place) = anchor.parse(text) else {
            continue;
        };
        let uid = place.pod.to_string();
        let id = place.container.to_string();
        let text = String::from_utf8_lossy(text);
        let proof = text.lines().any(|line| {
            let path = line.splitn(3, ':').nth(2).unwrap_or_default();
            let below = match depth {
                None => path.strip_prefix(root).or_else(|| {
                    let beside = path
                        .strip_prefix("/system.slice/containerd.service")
                        .unwrap_or(path);
                    beside.contains(".slice:cri-containerd:").then_some(beside)
                }),
                Some(depth) => {
                    let up = path
                        .split('/')
                        .skip(1)
                        .take_while(|name| *name == "..")
                        .count();
                    (2..*depth).contains(&up).then(|| &path[3 * up..])
                }
            };
            // The first UID and id of all there are, with at most a class's directory before.
            below.is_some_and(|below| {
                let below = below.replace('_', "-");
                let pod = below.find(&format!("pod{uid}"));
                let container = below.find(&id);
                pod.is_some_and(|pod| {
                    below[..pod].matches('/').count() <= 2
                        && container.is_some_and(|container| {
                            container > pod && below[pod..container].matches('/').count() <= 1
                        })
                })
            })
        });
        assert!(proof, "{anchor} took {uid}, {id} from {text:?}");
    }
});
