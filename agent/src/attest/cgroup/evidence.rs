//! One path → what it says about its process, given the anchor.
//!
//! `anchor.rs` combines the lines of one file.

use std::slice;

use super::name::{self, Mismatched, Names, PodName, QosClass, UidText};
use super::text::{self, Path};
use super::{CgroupDenial, ContainerId, PodCgroup, PodUid};

/// What one line says, if it does not deny the whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The line proves that the process is in this pod.
    Proof(PodCgroup),
    /// The line names a pod where no kubelet of this node could: it proves nothing, but must not contradict a proof.
    Claim(PodUid, ContainerId),
    /// The line names no pod, as is normal for some controllers; a file of only such lines is denied.
    Silent(CgroupDenial),
}

/// The kubepods root as the reader's cgroup namespace shows it.
#[derive(Clone, Debug)]
pub(super) enum View {
    /// Paths begin at the top.
    Absolute {
        /// The root's own path.
        root: Box<[u8]>,
        /// The path above the outermost of the root's slices, where a container runtime that ignores the slices puts
        /// its cgroups too; none with the cgroupfs driver.
        base: Option<Box<[u8]>>,
    },
    /// Paths begin at the reader's container and lead up from there.
    Relative {
        /// How many levels the reader's container is below the root: 2 for a guaranteed pod, else 3.
        climb: usize,
        /// The reader's own QoS class, if known.
        own: Option<QosClass>,
    },
}

/// Where containerd runs, and with it every container that it starts with the wrong driver.
pub(super) const RUNTIME_SERVICE: &[u8] = b"/system.slice/containerd.service";

impl View {
    /// Reads one path of a hierarchy that the root is known to be in.
    pub(super) fn read(&self, names: &Names, path: &[u8]) -> Result<Evidence, CgroupDenial> {
        let parsed = Path::parse(path)?;
        match self {
            Self::Absolute { .. } if parsed.up > 0 => outside(&parsed, CgroupDenial::OutsideRoot),
            Self::Absolute { root, base } => {
                if let Some(below) = text::below(path, root) {
                    return in_root(names, below, None);
                }
                match base
                    .as_deref()
                    .and_then(|base| beside_root(names, path, base))
                {
                    Some(place) => place,
                    None => outside(&parsed, CgroupDenial::NotAPod),
                }
            }
            Self::Relative { climb, own } => match parsed.up {
                0 | 1 => Err(CgroupDenial::SamePodElided),
                up if up > *climb => outside(&parsed, CgroupDenial::OutsideRoot),
                up if up == *climb => in_root(names, parsed.below, *own),
                // From three levels below the root, two up is the directory of the reader's QoS class.
                _ => {
                    let own = own.as_ref().map(slice::from_ref);
                    let classes = own.unwrap_or(QosClass::WITH_DIRECTORY);
                    in_class(names, parsed.names(), classes)
                }
            },
        }
    }
}

/// Reads what follows the kubepods root, which a reader of class `own` reached by going up.
fn in_root(names: &Names, below: &[u8], own: Option<QosClass>) -> Result<Evidence, CgroupDenial> {
    let mut rest = text::names(below);
    let Some(first) = rest.clone().next() else {
        return Ok(Evidence::Silent(CgroupDenial::NotAPod));
    };
    let Some(class) = names.qos(first) else {
        return match PodName::parse(first) {
            Some(_) => in_class(names, rest, &[QosClass::Guaranteed]),
            None => Err(CgroupDenial::Malformed),
        };
    };
    if own == Some(class) {
        // The kernel goes up only to the nearest common directory, so it would have gone up one level less.
        return Err(CgroupDenial::Malformed);
    }
    rest.next();
    in_class(names, rest, &[class])
}

/// Reads what follows a directory that holds pods of one of these classes.
fn in_class<'a>(
    names: &Names,
    mut rest: impl Iterator<Item = &'a [u8]>,
    classes: &[QosClass],
) -> Result<Evidence, CgroupDenial> {
    let Some(first) = rest.next() else {
        return Ok(Evidence::Silent(CgroupDenial::NotAPod));
    };
    let pod = PodName::parse(first).ok_or(CgroupDenial::NotAPod)?;
    if !classes.iter().any(|class| names.fits(&pod, *class)) {
        return Err(CgroupDenial::Malformed);
    }
    in_pod(&pod, rest.next().ok_or(CgroupDenial::BadContainerId), rest)
}

/// Reads a path next to the root as the cgroup of a container whose runtime does not use the kubelet's driver; none if
/// it is no such path.
fn beside_root(names: &Names, path: &[u8], base: &[u8]) -> Option<Result<Evidence, CgroupDenial>> {
    let below = text::below(path, base)?;
    let mut rest = text::names(text::below(below, RUNTIME_SERVICE).unwrap_or(below));
    let Mismatched { pod, container } = Mismatched::parse(rest.next()?)?;
    let fits = |class: &QosClass| names.fits(&pod, *class);
    let is_pod = QosClass::ALL.iter().any(fits);
    is_pod.then(|| in_pod(&pod, Ok(container), rest))
}

/// Reads a pod, its container, and what the container may have created below itself.
fn in_pod<'a>(
    pod: &PodName<'_>,
    container: Result<&[u8], CgroupDenial>,
    mut rest: impl Iterator<Item = &'a [u8]>,
) -> Result<Evidence, CgroupDenial> {
    let pod = match pod.uid {
        UidText::Invalid => return Err(CgroupDenial::Malformed),
        UidText::Static => return Err(CgroupDenial::StaticPod),
        UidText::Uid(uid) => uid,
    };
    let container = name::container(container?)?;
    let nested_pod = rest.any(|name| name::claimed_uid(name).is_some());
    Ok(Evidence::Proof(PodCgroup {
        pod,
        container,
        nested_pod,
    }))
}

/// Reads a path that is not known to begin at the root; `otherwise` is the reason to deny if it claims no pod.
pub(super) fn outside(path: &Path<'_>, otherwise: CgroupDenial) -> Result<Evidence, CgroupDenial> {
    let mut names = path.names();
    let mut silent = otherwise;
    while let Some(name) = names.next() {
        match name::claimed_uid(name) {
            None if name::is_monitor(name) => silent = CgroupDenial::MonitorProcess,
            None => {}
            Some(UidText::Uid(pod)) => {
                let container = match Mismatched::parse(name) {
                    Some(mismatched) => Some(mismatched.container),
                    None => names.next(),
                };
                return match container.map(name::container) {
                    Some(Ok(container)) => Ok(Evidence::Claim(pod, container)),
                    _ => Err(CgroupDenial::OutsideRoot),
                };
            }
            Some(_) => return Err(CgroupDenial::OutsideRoot),
        }
    }
    Ok(Evidence::Silent(silent))
}
