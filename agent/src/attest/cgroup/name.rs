//! What one segment of a cgroup path can be: a QoS directory, a pod, a container, a monitor.
//!
//! The kubelet names the first two by its cgroup driver, each runtime the others in its own way. `evidence.rs` decides
//! which segment may be where.

use std::str::FromStr;

use super::{CgroupDenial, ContainerId, InvalidId, PodUid, id};

/// A pod's QoS class, which decides how deep its cgroup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QosClass {
    /// Below the directory `besteffort`.
    BestEffort,
    /// Below the directory `burstable`.
    Burstable,
    /// Directly below the kubepods root.
    Guaranteed,
}

impl QosClass {
    /// All of them.
    pub(super) const ALL: &[Self] = &[Self::BestEffort, Self::Burstable, Self::Guaranteed];

    /// Those with a directory of their own below the root.
    pub(super) const WITH_DIRECTORY: &[Self] = &[Self::BestEffort, Self::Burstable];

    /// The class's directory below the root, without what the driver adds to the name.
    fn directory(self) -> Option<&'static str> {
        match self {
            Self::BestEffort => Some("besteffort"),
            Self::Burstable => Some("burstable"),
            Self::Guaranteed => None,
        }
    }
}

/// Parses the class as a pod's `status.qosClass` spells it.
impl FromStr for QosClass {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text {
            "BestEffort" => Ok(Self::BestEffort),
            "Burstable" => Ok(Self::Burstable),
            "Guaranteed" => Ok(Self::Guaranteed),
            _ => Err(InvalidId("QoS class (Guaranteed, Burstable or BestEffort)")),
        }
    }
}

/// How the kubelet names directories below the kubepods root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// As the cgroupfs driver does: `burstable`, `pod<uid>`.
    Cgroupfs,
    /// As the systemd driver does: `<stem>-burstable.slice`, `<stem>-burstable-pod<uid>.slice`.
    Systemd {
        /// The name of the root without `.slice`.
        stem: Box<[u8]>,
    },
    /// Unknown, since a cgroup namespace hides the root's own name: either of the two.
    Unknown,
}

impl Names {
    /// The naming that goes with a root whose last segment is `last`; none if no root ends in it.
    pub(super) fn of_root(last: &[u8]) -> Option<Self> {
        match last.strip_suffix(b".slice") {
            Some(stem) if is_stem(stem) => Some(Self::Systemd { stem: stem.into() }),
            None if last == b"kubepods" => Some(Self::Cgroupfs),
            _ => None,
        }
    }

    pub(super) fn is_systemd(&self) -> bool {
        matches!(self, Self::Systemd { .. })
    }

    /// The QoS class whose directory is called `name`.
    pub(super) fn qos(&self, name: &[u8]) -> Option<QosClass> {
        QosClass::WITH_DIRECTORY.iter().copied().find(|class| {
            let Some(rest) = name.strip_suffix(b".slice") else {
                return !self.is_systemd()
                    && class
                        .directory()
                        .is_some_and(|directory| name == directory.as_bytes());
            };
            strip_qos(rest, *class).is_some_and(|stem| self.allows(stem))
        })
    }

    /// Whether a pod of `class` can have this name.
    pub(super) fn fits(&self, pod: &PodName<'_>, class: QosClass) -> bool {
        match pod.slice {
            None => !self.is_systemd(),
            Some(slice) => strip_qos(slice, class).is_some_and(|stem| self.allows(stem)),
        }
    }

    /// Whether a slice below the root may begin with `stem`.
    fn allows(&self, stem: &[u8]) -> bool {
        match self {
            Self::Cgroupfs => false,
            Self::Systemd { stem: own } => **own == *stem,
            Self::Unknown => is_stem(stem),
        }
    }
}

/// Whether `name` is that of a kubepods slice, which a kubelet with `--cgroup-root` prefixes.
fn is_stem(name: &[u8]) -> bool {
    name.strip_suffix(b"kubepods")
        .is_some_and(|head| head.is_empty() || head.ends_with(b"-"))
}

/// What precedes the class in a slice's name; all of it for guaranteed pods, whose names omit it.
pub(super) fn strip_qos(slice: &[u8], class: QosClass) -> Option<&[u8]> {
    match class.directory() {
        Some(directory) => slice.strip_suffix(directory.as_bytes())?.strip_suffix(b"-"),
        None => Some(slice),
    }
}

/// A segment that has the form of a pod's name under either driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct PodName<'a> {
    /// The part of a slice's name before `-pod`; none with the cgroupfs driver.
    pub(super) slice: Option<&'a [u8]>,
    /// The text after `pod`.
    pub(super) uid: UidText,
}

/// What a pod's name has in place of the UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UidText {
    /// Anything else, such as a mix of separators.
    Invalid,
    /// A static pod's configuration hash, which is never the UID of a pod in the API.
    Static,
    /// A UID.
    Uid(PodUid),
}

impl<'a> PodName<'a> {
    /// Parses a segment as a pod's name; the UID may still be invalid.
    pub(super) fn parse(name: &'a [u8]) -> Option<Self> {
        let Some(name) = name.strip_suffix(b".slice") else {
            let uid = UidText::parse(name.strip_prefix(b"pod")?);
            return Some(Self { slice: None, uid });
        };
        // The last match is the right one: a UID never contains a `p`, but a prefix may.
        let at = name.windows(4).rposition(|window| window == b"-pod")?;
        Some(Self {
            slice: Some(&name[..at]),
            uid: UidText::parse(&name[at + 4..]),
        })
    }
}

impl UidText {
    fn parse(text: &[u8]) -> Self {
        if let Some(uid) = PodUid::from_name(text) {
            Self::Uid(uid)
        } else if id::hex::<16>(text).is_some() {
            Self::Static
        } else {
            Self::Invalid
        }
    }
}

/// The single segment `<pod>.slice:cri-containerd:<id>`, which containerd writes when the kubelet uses the systemd
/// driver and containerd itself does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mismatched<'a> {
    pub(super) pod: PodName<'a>,
    pub(super) container: &'a [u8],
}

impl<'a> Mismatched<'a> {
    /// Reads a segment of that form.
    pub(super) fn parse(name: &'a [u8]) -> Option<Self> {
        let mut parts = name.splitn(3, |&byte| byte == b':');
        let (pod, runtime, container) = (parts.next()?, parts.next()?, parts.next()?);
        let pod = PodName::parse(pod).filter(|pod| pod.slice.is_some())?;
        (runtime == b"cri-containerd").then_some(Self { pod, container })
    }
}

/// The UID that a segment claims, whether or not a kubelet would put one there.
pub(super) fn claimed_uid(name: &[u8]) -> Option<UidText> {
    let name = name.split(|&byte| byte == b':').next().unwrap_or(name);
    PodName::parse(name)
        .map(|pod| pod.uid)
        .filter(|uid| *uid != UidText::Invalid)
}

/// Whether a segment belongs to a container's monitor, which is not in the container.
pub(super) fn is_monitor(name: &[u8]) -> bool {
    name == b"conmon" || name.starts_with(b"crio-conmon-") || name.starts_with(b"libpod-conmon-")
}

/// Parses a segment as a container's, in any runtime's naming.
pub(super) fn container(name: &[u8]) -> Result<ContainerId, CgroupDenial> {
    if is_monitor(name) {
        return Err(CgroupDenial::MonitorProcess);
    }
    let id = if let Some(rest) = name.strip_prefix(b"cri-containerd-") {
        rest.strip_suffix(b".scope")
    } else if let Some(rest) = name.strip_prefix(b"docker-") {
        rest.strip_suffix(b".scope")
    } else if let Some(rest) = name.strip_prefix(b"crio-") {
        // CRI-O omits the suffix with the cgroupfs driver.
        Some(rest.strip_suffix(b".scope").unwrap_or(rest))
    } else {
        Some(name)
    };
    id.and_then(ContainerId::from_name)
        .ok_or(CgroupDenial::BadContainerId)
}
