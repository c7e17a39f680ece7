//! The kubepods root: found at start, then checked against every cgroup file.

mod learn;

use std::fmt;

use thiserror::Error;

use super::evidence::{self, Evidence, View};
use super::name::Names;
use super::text::{self, Path};
use super::{CgroupDenial, ContainerId, PodCgroup, PodUid};

/// The kubepods root from which cgroup paths are read, as the reader's cgroup namespace shows it.
#[derive(Clone, Debug)]
pub(crate) struct Anchor {
    /// Which directory it is, in words.
    described: Box<str>,
    names: Names,
    view: View,
}

/// Why the kubepods root is unknown, and what an operator can do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum AnchorError {
    /// No pod under the root can be at the agent's depth.
    #[error(
        "the agent's container is {depth} levels below the node's init, but a pod's under {root} \
         is {} or {}: set identity.kubepods_root to the path that the node's init sees, or leave \
         it empty to have it learned", .level + 2, .level + 3
    )]
    DepthMismatch {
        /// The agent's depth.
        depth: usize,
        /// The levels of the root.
        level: usize,
        /// The root that was configured.
        root: String,
    },
    /// No kubelet makes such a root.
    #[error(
        "{0:?} is no kubepods root: identity.kubepods_root must be an absolute path that ends in \
         kubepods, kubepods.slice or <prefix>-kubepods.slice"
    )]
    InvalidRoot(String),
    /// The agent sees its own pod where the node's init should be.
    #[error(
        "process 1 is not the node's init, so peers cannot be seen either: set hostPID: true in \
         the agent's pod; if the agent does not run in a pod, set identity.kubepods_root"
    )]
    NoHostPid,
    /// The agent is in no pod from which it could learn the root.
    #[error(
        "the agent's own cgroup is not in a pod, so it cannot be learned where the kubelet keeps \
         pods: set identity.kubepods_root to that path, such as /kubepods.slice"
    )]
    NotInPod,
    /// The agent could not attest its own pod.
    #[error(
        "the agent's own cgroup is not one that it could attest ({0}): this container runtime is \
         not supported, or identity.kubepods_root is wrong"
    )]
    OwnCgroup(#[source] CgroupDenial),
    /// The agent's own cgroup is in a pod with another UID.
    #[error(
        "the agent's own cgroup is in pod {found}, and not in pod {own}: take kubernetes.pod_uid \
         from the downward API (metadata.uid), or set identity.kubepods_root"
    )]
    OtherPod {
        /// The UID in the cgroup.
        found: PodUid,
        /// The UID that the agent was told.
        own: PodUid,
    },
    /// The agent's own pod is not under the configured root.
    #[error(
        "the agent's own pod is not under {0}: correct identity.kubepods_root, or leave it empty \
         to have it learned"
    )]
    OwnPodElsewhere(String),
    /// The hierarchies of cgroup v1 show different roots.
    #[error(
        "the cgroup hierarchies show the agent's pod under both {0} and {1}: set \
         identity.kubepods_root to the one that other pods have too"
    )]
    RootsDisagree(String, String),
    /// The agent's cgroup namespace cannot be that of a container in a pod.
    #[error(
        "the agent's container is only {0} levels below the node's init, where no pod's is: set \
         identity.kubepods_root if the agent does not run in a pod"
    )]
    TooShallow(usize),
    /// A cgroup file cannot be read.
    #[error(
        "{0} cannot be read ({1}): is it hidden from the agent, by /proc's hidepid or a security module?"
    )]
    Hidden(&'static str, String),
    /// A cgroup file is malformed.
    #[error("{file} is no cgroup file of a node ({reason}): is hostPID set?")]
    Malformed {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        reason: CgroupDenial,
    },
    /// Paths are relative, and not in cgroup v2's single hierarchy.
    #[error(
        "a cgroup namespace hides the agent's place in the cgroup v1 hierarchies: run the agent in \
         the host's cgroup namespace, as container runtimes do by default with cgroup v1"
    )]
    UnknownDepth,
    /// The agent's own UID is needed to learn the root.
    #[error(
        "the agent's own pod is not known: set kubernetes.pod_uid from the downward API \
         (metadata.uid), or set identity.kubepods_root"
    )]
    UnknownOwnPod,
    /// The agent's QoS class is needed to learn the root from inside a cgroup namespace.
    #[error(
        "the QoS class of the agent's own pod (status.qosClass) is not known, which says how deep \
         below the kubepods root it is: set identity.kubepods_root, or let the agent read its pod"
    )]
    UnknownQos,
}

impl Anchor {
    /// The anchor for a known root, such as `/kubepods.slice`, and a reader `depth` levels below the top of the tree in
    /// a private cgroup namespace; none if it sees absolute paths.
    ///
    /// # Errors
    ///
    /// If `root` is not the path of a kubepods root, or no pod under it can be at `depth`.
    pub(crate) fn new(root: &str, depth: Option<usize>) -> Result<Self, AnchorError> {
        let names = names_below(root).ok_or_else(|| AnchorError::InvalidRoot(root.to_owned()))?;
        let view = match depth {
            None => View::Absolute {
                root: root.as_bytes().into(),
                base: names
                    .is_systemd()
                    .then(|| above_slices(root).as_bytes().into()),
            },
            Some(depth) => {
                let level = text::names(root.as_bytes()).count();
                let climb = depth
                    .checked_sub(level)
                    .filter(|climb| matches!(climb, 2 | 3));
                let mismatch = || AnchorError::DepthMismatch {
                    depth,
                    level,
                    root: root.to_owned(),
                };
                View::Relative {
                    climb: climb.ok_or_else(mismatch)?,
                    own: None,
                }
            }
        };
        let described = match depth {
            None => root.into(),
            Some(depth) => format!("{root}, seen from {depth} levels below").into(),
        };
        Ok(Self {
            described,
            names,
            view,
        })
    }

    /// Parses a whole cgroup file.
    ///
    /// At least one line must prove the pod, and none may name another pod or another container. Lines that name none
    /// are normal: not every cgroup v1 controller is the kubelet's.
    ///
    /// # Errors
    ///
    /// If the file does not prove that its process is in one container of one pod.
    pub(crate) fn parse(&self, text: &[u8]) -> Result<PodCgroup, CgroupDenial> {
        // The depth applies to the unified hierarchy; in another, two levels up may be anywhere.
        let unified_only = matches!(self.view, View::Relative { .. })
            && text::lines(text).any(|line| line.is_ok_and(|line| line.unified));
        let mut proof: Option<PodCgroup> = None;
        let mut named: Option<(PodUid, ContainerId)> = None;
        let mut denial = CgroupDenial::NotAPod;
        let mut last: &[u8] = b"";
        for line in text::lines(text) {
            let line = line?;
            if line.path == last && !unified_only {
                // Cgroup v1 repeats the same path a dozen times.
                continue;
            }
            last = line.path;
            let place = if unified_only && !line.unified {
                evidence::outside(&Path::parse(line.path)?, CgroupDenial::NotAPod)?
            } else {
                self.view.read(&self.names, line.path)?
            };
            let pair = match place {
                Evidence::Proof(place) => {
                    let nested_pod =
                        place.nested_pod || proof.is_some_and(|proof| proof.nested_pod);
                    proof = Some(PodCgroup {
                        nested_pod,
                        ..place
                    });
                    (place.pod, place.container)
                }
                Evidence::Claim(pod, container) => {
                    denial = CgroupDenial::OutsideRoot;
                    (pod, container)
                }
                Evidence::Silent(reason) => {
                    if denial == CgroupDenial::NotAPod {
                        denial = reason;
                    }
                    continue;
                }
            };
            if *named.get_or_insert(pair) != pair {
                return Err(CgroupDenial::ControllersDisagree);
            }
        }
        proof.ok_or(denial)
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.described)
    }
}

/// Whether `path` can be that of a kubepods root.
pub(crate) fn is_root(path: &str) -> bool {
    names_below(path).is_some()
}

/// How things are named below `root`; none if that is no path of a kubepods root.
fn names_below(root: &str) -> Option<Names> {
    let path = Path::parse(root.as_bytes()).ok()?;
    if !root.starts_with('/') || path.up > 0 {
        return None;
    }
    Names::of_root(path.names().last()?)
}

/// The part of a root's path above its slices: systemd keeps `a-b.slice` in `a.slice`.
fn above_slices(root: &str) -> &str {
    let mut above = root;
    let mut slice = root
        .rsplit('/')
        .next()
        .and_then(|last| last.strip_suffix(".slice"));
    while let Some(stem) = slice {
        let parent = above
            .strip_suffix(".slice")
            .and_then(|rest| rest.strip_suffix(stem))
            .and_then(|rest| rest.strip_suffix('/'));
        let Some(parent) = parent else { break };
        above = parent;
        slice = stem.rsplit_once('-').map(|(head, _)| head);
    }
    above
}
