//! Any bytes as the cgroup files of the agent and of init: a root that is learned is one that
//! stands in the agent's own file, or a level of it.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(
    dead_code,
    unused_imports,
    reason = "each target uses a part of the parser"
)]
#[path = "../../../agent/src/attest"]
mod attest {
    pub mod cgroup;
}

use attest::cgroup::{Anchor, PodUid, QosClass};

const OWN: &str = "7a96c459-d529-44ae-9f99-90d3798d6426";

fuzz_target!(|files: (&[u8], &[u8], u8)| {
    let (own, init, class) = files;
    let own_uid: PodUid = OWN.parse().expect("a UID");
    let own_qos = match class % 4 {
        0 => None,
        1 => Some(QosClass::BestEffort),
        2 => Some(QosClass::Burstable),
        _ => Some(QosClass::Guaranteed),
    };
    if let Ok(anchor) = Anchor::learn(own, init, own_uid, own_qos) {
        let own = String::from_utf8_lossy(own);
        let told = anchor.to_string();
        if told.starts_with('/') {
            let root = told.split(", seen from").next().unwrap_or_default();
            // A runtime with the wrong driver names the root's slice alone, without its path.
            assert!(
                own.contains(root) || own.contains(".slice:cri-containerd:"),
                "{root}"
            );
            assert_eq!(anchor.parse(own.as_bytes()).map(|it| it.pod), Ok(own_uid));
        } else {
            assert!(String::from_utf8_lossy(init).contains("/../.."), "{told}");
            assert!(own_qos.is_some());
        }
    }
    let _ = Anchor::with_root("/kubepods.slice", own, init);
});
