//! How the agent learns where pods are, from its own cgroup file and that of the node's init.
//!
//! Where the agent sees absolute paths, its own path names its own pod, and what precedes that is the root. In a
//! private cgroup namespace it sees itself as `/`, and init only by how many levels up it is; the pod's QoS class then
//! says how many of those levels are the pod's and the container's (cgroup_namespaces(7)).

use super::super::evidence::{self, View};
use super::super::name::{self, Mismatched, Names, QosClass, UidText};
use super::super::text::{self, Line, Path};
use super::super::{CgroupDenial, PodUid};
use super::{Anchor, AnchorError};

/// The agent's own cgroup file.
const OWN: &str = "/proc/self/cgroup";

/// The cgroup file of the node's init, which is process 1 for a pod with `hostPID`.
const INIT: &str = "/proc/1/cgroup";

impl Anchor {
    /// Learns the root from the agent's own cgroup file and that of the node's init.
    ///
    /// `own_uid` is the UID of the agent's own pod, from the downward API, and `own_qos` its `status.qosClass`, without
    /// which nothing can be learned from inside a cgroup namespace.
    ///
    /// # Errors
    ///
    /// If the files do not determine the root beyond doubt.
    pub(crate) fn learn(
        own: &[u8],
        init: &[u8],
        own_uid: PodUid,
        own_qos: Option<QosClass>,
    ) -> Result<Self, AnchorError> {
        let own_lines = read(OWN, own)?;
        let init_lines = read(INIT, init)?;
        let mut roots = own_lines
            .iter()
            .filter_map(|line| root_above(line.path, own_uid));
        if let Some(root) = roots.next() {
            if let Some(other) = roots.find(|other| *other != root) {
                return Err(AnchorError::RootsDisagree(root, other));
            }
            let anchor = Self::new(&root, None)?;
            // If the agent cannot attest itself, it cannot attest others either.
            anchor.parse(own).map_err(AnchorError::OwnCgroup)?;
            return anchor.unless_init_is_in(own_uid, init);
        }
        if let Some(found) = own_lines.iter().find_map(|line| first_uid(line.path)) {
            return Err(AnchorError::OtherPod {
                found,
                own: own_uid,
            });
        }
        let depth = match depth_below(&init_lines)? {
            0 if own_lines.iter().all(|line| line.path == b"/") => {
                return Err(AnchorError::NoHostPid);
            }
            0 => return Err(AnchorError::NotInPod),
            // One level above a container is its pod: process 1 is that of the pod's sandbox.
            1 => return Err(AnchorError::NoHostPid),
            depth => depth,
        };
        let climb = match own_qos {
            // The least is the root, a guaranteed pod and a container.
            _ if depth < 3 => return Err(AnchorError::TooShallow(depth)),
            None => return Err(AnchorError::UnknownQos),
            Some(QosClass::Guaranteed) => 2,
            Some(QosClass::BestEffort | QosClass::Burstable) => 3,
        };
        if depth <= climb {
            return Err(AnchorError::TooShallow(depth));
        }
        Ok(Self {
            described: format!("the directory {climb} levels above the agent's container").into(),
            names: Names::Unknown,
            view: View::Relative {
                climb,
                own: own_qos,
            },
        })
    }

    /// The anchor for a configured root; only the agent's depth below it is learned.
    ///
    /// # Errors
    ///
    /// If the root does not fit the agent's own cgroup.
    pub(crate) fn with_root(root: &str, own: &[u8], init: &[u8]) -> Result<Self, AnchorError> {
        read(OWN, own)?;
        let init_lines = read(INIT, init)?;
        let absolute = Self::new(root, None)?;
        let denial = match absolute.parse(own) {
            Ok(place) => return absolute.unless_init_is_in(place.pod, init),
            Err(denial) => denial,
        };
        match (depth_below(&init_lines)?, denial) {
            (1, _) => Err(AnchorError::NoHostPid),
            (depth @ 2.., _) => Self::new(root, Some(depth)),
            (0, CgroupDenial::OutsideRoot) => Err(AnchorError::OwnPodElsewhere(root.to_owned())),
            // A process of the node itself, such as a systemd service.
            (0, CgroupDenial::MonitorProcess | CgroupDenial::NotAPod) => Ok(absolute),
            (0, denial) => Err(AnchorError::OwnCgroup(denial)),
        }
    }

    fn unless_init_is_in(self, own_uid: PodUid, init: &[u8]) -> Result<Self, AnchorError> {
        match self.parse(init) {
            Ok(place) if place.pod == own_uid => Err(AnchorError::NoHostPid),
            _ => Ok(self),
        }
    }
}

/// All lines of a file, each with a well-formed path.
fn read<'a>(file: &'static str, text: &'a [u8]) -> Result<Vec<Line<'a>>, AnchorError> {
    text::lines(text)
        .map(|line| line.and_then(|line| Path::parse(line.path).map(|_| line)))
        .collect::<Result<_, _>>()
        .map_err(|reason| AnchorError::Malformed { file, reason })
}

/// How many levels the reader's cgroup namespace begins below init's cgroup.
fn depth_below(init: &[Line<'_>]) -> Result<usize, AnchorError> {
    let up = |line: &Line<'_>| Path::parse(line.path).map_or(0, |path| path.up);
    let deepest = init.iter().map(up).max().unwrap_or(0);
    match init.iter().find(|line| line.unified) {
        Some(unified) if up(unified) > 0 || deepest == 0 => Ok(up(unified)),
        // In cgroup v1, each hierarchy has its own depth.
        None if deepest == 0 => Ok(0),
        _ => Err(AnchorError::UnknownDepth),
    }
}

/// The first pod UID in a path, wherever it is.
fn first_uid(path: &[u8]) -> Option<PodUid> {
    text::names(path).find_map(|name| match name::claimed_uid(name) {
        Some(UidText::Uid(uid)) => Some(uid),
        _ => None,
    })
}

/// The kubepods root in the agent's own path: what precedes its own pod and the QoS directory.
///
/// Here the first pod need not be the agent's own: the node may itself be a container in a pod.
fn root_above(path: &[u8], own_uid: PodUid) -> Option<String> {
    let mut end = 0;
    let own = text::names(path).find(|name| {
        let is_own = name::claimed_uid(name) == Some(UidText::Uid(own_uid));
        end += if is_own { 0 } else { name.len() + 1 };
        is_own
    })?;
    let above = &path[..end];
    let root = match Mismatched::parse(own) {
        // The runtime ignores the slices, but the pod's name contains theirs.
        Some(Mismatched { pod, .. }) => {
            let slice = pod.slice?;
            let stem = |class: &QosClass| name::strip_qos(slice, *class);
            let stem = QosClass::ALL.iter().find_map(stem)?;
            let base = above
                .strip_suffix(evidence::RUNTIME_SERVICE)
                .unwrap_or(above);
            slices(str::from_utf8(base).ok()?, str::from_utf8(stem).ok()?)
        }
        None => {
            let last = text::names(above).last()?;
            let qos = if Names::Unknown.qos(last).is_some() {
                last.len() + 1
            } else {
                0
            };
            str::from_utf8(&above[..above.len() - qos]).ok()?.to_owned()
        }
    };
    Some(root)
}

/// The path of the slice `<stem>.slice` below `base`: systemd keeps `a-b.slice` in `a.slice`.
fn slices(base: &str, stem: &str) -> String {
    let ends = stem
        .match_indices('-')
        .map(|(at, _)| at)
        .chain([stem.len()]);
    ends.fold(base.to_owned(), |path, end| {
        format!("{path}/{}.slice", &stem[..end])
    })
}
