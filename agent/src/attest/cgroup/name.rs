//! What one segment of a cgroup path can be: a QoS directory, a pod, a container, a monitor.
//!
//! A kubelet writes the names of the first two in the way of its cgroup driver, a runtime those
//! of the others in its own. Which segment may stand where is decided in `evidence.rs`.

use std::str::FromStr;

use super::{CgroupDenial, ContainerId, InvalidId, PodUid, id};

/// A pod's class of service, which decides how deep its cgroup lies.
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
    /// The class's directory below the root, without the driver's decoration.
    fn directory(self) -> Option<&'static str> {
        match self {
            Self::BestEffort => Some("besteffort"),
            Self::Burstable => Some("burstable"),
            Self::Guaranteed => None,
        }
    }
}

/// Reads the class as `status.qosClass` of a pod has it.
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
    /// The cgroupfs driver's way: `burstable`, `pod<uid>`.
    Cgroupfs,
    /// The systemd driver's way: `<stem>-burstable.slice`, `<stem>-burstable-pod<uid>.slice`.
    Systemd {
        /// The name of the root without `.slice`.
        stem: Box<[u8]>,
    },
    /// Not known, as the root's own name is hidden by a cgroup namespace: either of the two.
    Unknown,
}

impl Names {
    /// The way of naming that goes with the last segment of a root, if it is one of a root.
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

    /// The class whose directory `name` is.
    pub(super) fn qos(&self, name: &[u8]) -> Option<QosClass> {
        [QosClass::BestEffort, QosClass::Burstable]
            .into_iter()
            .find(|class| {
                let Some(rest) = name.strip_suffix(b".slice") else {
                    return !self.is_systemd()
                        && class
                            .directory()
                            .is_some_and(|directory| name == directory.as_bytes());
                };
                strip_qos(rest, *class).is_some_and(|stem| self.allows(stem))
            })
    }

    /// Whether a pod of `class` has this name.
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

/// The rest of a slice's name before the part that says the class; all of it if none is said.
pub(super) fn strip_qos(slice: &[u8], class: QosClass) -> Option<&[u8]> {
    match class.directory() {
        Some(directory) => slice.strip_suffix(directory.as_bytes())?.strip_suffix(b"-"),
        None => Some(slice),
    }
}

/// A segment that has the form of a pod's name in one of the two ways.
#[derive(Clone, Copy, Debug)]
pub(super) struct PodName<'a> {
    /// What a slice says before `-pod`; none in the cgroupfs driver's way.
    pub(super) slice: Option<&'a [u8]>,
    /// The text after `pod`.
    pub(super) uid: UidText,
}

/// What stands in the UID's place of a pod's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UidText {
    /// Anything else, such as separators of two kinds.
    Invalid,
    /// A static pod's configuration hash, which no pod in the API has as its UID.
    Static,
    /// A UID.
    Uid(PodUid),
}

impl<'a> PodName<'a> {
    /// Reads a segment as a pod's name; the UID may still be invalid.
    pub(super) fn parse(name: &'a [u8]) -> Option<Self> {
        let Some(name) = name.strip_suffix(b".slice") else {
            let uid = UidText::parse(name.strip_prefix(b"pod")?);
            return Some(Self { slice: None, uid });
        };
        // The last one is right: no UID has a `p` in it, but a prefix may.
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

/// The one segment `<pod>.slice:cri-containerd:<id>`, which containerd writes when the kubelet
/// uses the systemd driver and containerd itself does not.
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

/// The UID that a segment claims, be it in a place where a kubelet writes one or not.
pub(super) fn claimed_uid(name: &[u8]) -> Option<UidText> {
    let name = name.split(|&byte| byte == b':').next().unwrap_or(name);
    PodName::parse(name)
        .map(|pod| pod.uid)
        .filter(|uid| *uid != UidText::Invalid)
}

/// Whether a segment is that of a container's monitor, which is not the container.
pub(super) fn is_monitor(name: &[u8]) -> bool {
    name == b"conmon" || name.starts_with(b"crio-conmon-") || name.starts_with(b"libpod-conmon-")
}

/// Reads a segment as a container's, in any runtime's way.
pub(super) fn container(name: &[u8]) -> Result<ContainerId, CgroupDenial> {
    if is_monitor(name) {
        return Err(CgroupDenial::MonitorProcess);
    }
    let id = if let Some(rest) = name.strip_prefix(b"cri-containerd-") {
        rest.strip_suffix(b".scope")
    } else if let Some(rest) = name.strip_prefix(b"docker-") {
        rest.strip_suffix(b".scope")
    } else if let Some(rest) = name.strip_prefix(b"crio-") {
        // CRI-O leaves the suffix out with the cgroupfs driver.
        Some(rest.strip_suffix(b".scope").unwrap_or(rest))
    } else {
        Some(name)
    };
    id.and_then(ContainerId::from_name)
        .ok_or(CgroupDenial::BadContainerId)
}
