//! Checks what the kubelet asks for: anything that could lead elsewhere than to the pod's own volume is refused here.

use super::proto::{AccessType, NodePublishVolumeRequest, VolumeCapability};
use super::volume::{FilesAsked, PodReference, Volume};
use crate::attest::cgroup::PodUid;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tonic::Status;

/// The prefix of the kubelet's own attributes. It overwrites whatever a pod has written under these names.
const KUBELETS: &str = "csi.storage.k8s.io/";

/// Where the kubelet puts the pod's tokens.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// The attribute by which a pod asks for files.
const SECRETS: &str = "secrets";

/// The attribute's longest value, in bytes: it is kept in the volume's record.
const SECRETS_LIMIT: usize = 32 * 1024;

/// The longest id that a caller may give a volume; CSI's own limit for a string.
const ID_LIMIT: usize = 128;

/// A volume to publish.
pub(super) struct Publish {
    /// Whose it is and where, as yet without files.
    pub(super) volume: Volume,
    /// The files that its attributes ask for; an error if they are wrong.
    pub(super) files: Result<Option<FilesAsked>, Status>,
    pub(super) target: Target,
    /// The kubelet's JSON; empty if there are none.
    pub(super) tokens: Vec<u8>,
}

/// A volume's path below the kubelet's root: `pods/UID/volumes/kubernetes.io~csi/NAME/mount`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    /// The whole path, as the kubelet wrote it.
    pub(super) path: PathBuf,
    /// The directory of the kubelet's pods.
    pub(super) pods: PathBuf,
    /// The directory that the mount is in, relative to `pods`.
    pub(super) parent: String,
    pub(super) pod: PodUid,
}

// === impl Publish ===

impl Publish {
    /// Parses a request, with the kubelet's root at `kubelet`.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` or `FAILED_PRECONDITION`, naming the field; not for the attributes that a pod's author writes.
    pub(super) fn parse(
        mut request: NodePublishVolumeRequest,
        kubelet: &Path,
    ) -> Result<Self, Status> {
        let id = volume_id(request.volume_id)?;
        let target = Target::parse(&request.target_path, kubelet)?;
        let group = group_of(request.volume_capability, request.readonly)?;
        let context = &mut request.volume_context;
        if context
            .get("csi.storage.k8s.io/ephemeral")
            .map(String::as_str)
            != Some("true")
        {
            return Err(Status::invalid_argument(
                "only ephemeral inline volumes can be had: write the volume into the pod, and keep podInfoOnMount \
                 and the lifecycle mode Ephemeral in the CSIDriver object",
            ));
        }
        let tokens = request
            .secrets
            .remove(TOKENS)
            .or_else(|| context.remove(TOKENS));
        let pod = PodReference {
            uid: target.pod,
            namespace: told(context, "pod.namespace")?,
            name: told(context, "pod.name")?,
            service_account: told(context, "serviceAccount.name")?,
        };
        // Only the kubelet writes the path; the attribute is the kubelet's only while podInfoOnMount is on.
        if told(context, "pod.uid")?.parse() != Ok(target.pod) {
            return Err(Status::invalid_argument(
                "volume_context's pod.uid is not the pod of target_path",
            ));
        }
        Ok(Self {
            volume: Volume {
                id,
                pod,
                target: target.path.clone(),
                files: None,
            },
            files: files_asked(context, &group),
            target,
            tokens: tokens.map(String::into_bytes).unwrap_or_default(),
        })
    }
}

/// The files that a volume's attributes ask for, and the group that they are to have.
fn files_asked(
    context: &mut HashMap<String, String>,
    group: &str,
) -> Result<Option<FilesAsked>, Status> {
    let secrets = context.remove(SECRETS);
    let unknown = context.keys().filter(|key| !key.starts_with(KUBELETS));
    if let Some(key) = unknown.min() {
        return Err(Status::invalid_argument(format!(
            "the volume has an attribute {key:?}, which does not exist: there is {SECRETS:?} alone"
        )));
    }
    let Some(secrets) = secrets else {
        return Ok(None);
    };
    Ok(Some(FilesAsked {
        secrets: not_too_long(secrets)?,
        group: group_id(group)?,
    }))
}

/// Checks the id of a volume.
///
/// # Errors
///
/// `INVALID_ARGUMENT` if it is missing or too long.
pub(super) fn volume_id(id: String) -> Result<String, Status> {
    if id.is_empty() {
        Err(Status::invalid_argument("volume_id is missing"))
    } else if id.len() > ID_LIMIT {
        let text = format!("volume_id is longer than {ID_LIMIT} bytes");
        Err(Status::invalid_argument(text))
    } else {
        Ok(id)
    }
}

/// Returns the pod's group as the kubelet wrote it, of a volume that is read-only and without mount options.
///
/// # Errors
///
/// `INVALID_ARGUMENT` or `FAILED_PRECONDITION` for any other volume.
fn group_of(capability: Option<VolumeCapability>, readonly: bool) -> Result<String, Status> {
    let Some(capability) = capability else {
        return Err(Status::invalid_argument("volume_capability is missing"));
    };
    if capability.access_mode.is_none_or(|mode| mode.mode == 0) {
        return Err(Status::invalid_argument(
            "volume_capability.access_mode is missing",
        ));
    }
    // It is read-only in any case: this way it is so by what the pod itself says, and the kubelet does its part.
    if !readonly {
        return Err(Status::failed_precondition(
            "the volume must have readOnly: true, so that nothing in the pod can write where its socket is",
        ));
    }
    match capability.access_type {
        None => Err(Status::invalid_argument(
            "volume_capability.access_type is missing",
        )),
        Some(AccessType::Block(_)) => Err(Status::failed_precondition(
            "there are no block volumes: use volumeMounts, not volumeDevices",
        )),
        Some(AccessType::Mount(mount)) => {
            if !mount.fs_type.is_empty() || !mount.mount_flags.is_empty() {
                return Err(Status::failed_precondition(
                    "the volume takes no fsType and no mount options: leave them out",
                ));
            }
            Ok(mount.volume_mount_group)
        }
    }
}

fn not_too_long(secrets: String) -> Result<String, Status> {
    if secrets.len() > SECRETS_LIMIT {
        return Err(Status::invalid_argument(format!(
            "the volume's attribute {SECRETS:?} is longer than {SECRETS_LIMIT} bytes"
        )));
    }
    Ok(secrets)
}

/// Parses a group's number, if there is one. To the kernel the highest number is no group.
fn group_id(text: &str) -> Result<Option<u32>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let group = text.parse().ok().filter(|group| *group != u32::MAX);
    group.map(Some).ok_or_else(|| {
        Status::invalid_argument("volume_capability's volume_mount_group is no number of a group")
    })
}

fn told(context: &mut HashMap<String, String>, name: &str) -> Result<String, Status> {
    let value = context.remove(&format!("{KUBELETS}{name}"));
    value.filter(|value| !value.is_empty()).ok_or_else(|| {
        Status::invalid_argument(format!(
            "volume_context has no {name}: set podInfoOnMount in the CSIDriver object"
        ))
    })
}

// === impl Target ===

impl Target {
    /// Parses a path as the kubelet writes it, and accepts no other.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`.
    pub(super) fn parse(path: &str, kubelet: &Path) -> Result<Self, Status> {
        if path.is_empty() {
            return Err(Status::invalid_argument("target_path is missing"));
        }
        let pods = kubelet.join("pods");
        let below = path
            .strip_prefix(&format!("{}/", pods.display()))
            .unwrap_or_default();
        let parts: Vec<&str> = below.split('/').collect();
        let [uid, "volumes", "kubernetes.io~csi", name, "mount"] = parts[..] else {
            return Err(elsewhere(&pods));
        };
        let pod = uid.parse().map_err(|_| elsewhere(&pods))?;
        if matches!(name, "" | "." | "..") || name.chars().any(char::is_control) {
            return Err(elsewhere(&pods));
        }
        Ok(Self {
            path: path.into(),
            parent: format!("{uid}/volumes/kubernetes.io~csi/{name}"),
            pods,
            pod,
        })
    }
}

fn elsewhere(pods: &Path) -> Status {
    Status::invalid_argument(format!(
        "target_path is no place of a pod's CSI volume below {}: is --kubelet-root right?",
        pods.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::proto::{AccessMode, Empty, MountVolume};
    use super::*;
    use tonic::Code;

    const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    fn target() -> String {
        format!("/k/pods/{UID}/volumes/kubernetes.io~csi/latchkey/mount")
    }

    fn right() -> NodePublishVolumeRequest {
        let context = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "web"),
            ("csi.storage.k8s.io/pod.namespace", "test"),
            ("csi.storage.k8s.io/pod.uid", UID),
            ("csi.storage.k8s.io/serviceAccount.name", "app"),
        ];
        NodePublishVolumeRequest {
            volume_id: "csi-1".into(),
            target_path: target(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode { mode: 1 }),
            }),
            readonly: true,
            secrets: HashMap::new(),
            volume_context: context
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        }
    }

    fn refused(change: impl FnOnce(&mut NodePublishVolumeRequest)) -> (Code, String) {
        let mut request = right();
        change(&mut request);
        let publish = Publish::parse(request, Path::new("/k"));
        let status = publish.and_then(|publish| publish.files);
        let status = status.expect_err("it was taken");
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn what_the_kubelet_asks_for_is_taken() {
        let publish = Publish::parse(right(), Path::new("/k")).expect("it is right");
        assert_eq!(publish.volume.id, "csi-1");
        assert_eq!(publish.volume.pod.uid.to_string(), UID);
        assert_eq!(publish.volume.pod.namespace, "test");
        assert!(publish.tokens.is_empty());
    }

    #[test]
    fn tokens_are_taken_from_the_secrets_before_the_context() {
        let mut request = right();
        let context = &mut request.volume_context;
        context.insert(TOKENS.into(), "planted".into());
        request.secrets.insert(TOKENS.into(), "kubelets".into());
        let publish = Publish::parse(request, Path::new("/k")).expect("it is right");
        assert_eq!(publish.tokens, b"kubelets");
    }

    #[test]
    fn every_field_that_is_missing_is_named() {
        type Change = fn(&mut NodePublishVolumeRequest);
        let missing: [(&str, Change); 10] = [
            ("volume_id", |r| r.volume_id.clear()),
            ("target_path", |r| r.target_path.clear()),
            ("volume_capability", |r| r.volume_capability = None),
            ("access_mode", |r| {
                r.volume_capability.as_mut().expect("one").access_mode = None;
            }),
            ("access_type", |r| {
                r.volume_capability.as_mut().expect("one").access_type = None;
            }),
            ("ephemeral", |r| {
                r.volume_context.remove("csi.storage.k8s.io/ephemeral");
            }),
            ("pod.name", |r| {
                r.volume_context.remove("csi.storage.k8s.io/pod.name");
            }),
            ("pod.namespace", |r| {
                r.volume_context.remove("csi.storage.k8s.io/pod.namespace");
            }),
            ("pod.uid", |r| {
                r.volume_context.remove("csi.storage.k8s.io/pod.uid");
            }),
            ("serviceAccount.name", |r| {
                let key = "csi.storage.k8s.io/serviceAccount.name";
                r.volume_context.remove(key);
            }),
        ];
        for (name, change) in missing {
            let (code, text) = refused(change);
            assert_eq!(code, Code::InvalidArgument, "{name}");
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn what_the_volume_cannot_be_is_a_failed_precondition() {
        let block = |r: &mut NodePublishVolumeRequest| {
            let capability = r.volume_capability.as_mut().expect("one");
            capability.access_type = Some(AccessType::Block(Empty {}));
        };
        assert_eq!(refused(block).0, Code::FailedPrecondition);
        let ext4 = |r: &mut NodePublishVolumeRequest| {
            let capability = r.volume_capability.as_mut().expect("one");
            capability.access_type = Some(AccessType::Mount(MountVolume {
                fs_type: "ext4".into(),
                ..MountVolume::default()
            }));
        };
        assert_eq!(refused(ext4).0, Code::FailedPrecondition);
    }

    #[test]
    fn a_volume_that_is_not_ephemeral_is_refused() {
        let (code, text) = refused(|r| {
            let key = "csi.storage.k8s.io/ephemeral";
            r.volume_context.insert(key.into(), "false".into());
        });
        assert_eq!(code, Code::InvalidArgument);
        assert!(text.contains("ephemeral"), "{text}");
    }

    #[test]
    fn a_pod_that_names_itself_another_is_refused() {
        let (code, _) = refused(|r| {
            let other = UID.replace('0', "1");
            let key = "csi.storage.k8s.io/pod.uid";
            r.volume_context.insert(key.into(), other);
        });
        assert_eq!(code, Code::InvalidArgument);
    }

    #[test]
    fn a_target_anywhere_else_is_refused() {
        for path in [
            "/etc".to_owned(),
            format!("/k/pods/{UID}/volumes/kubernetes.io~csi/latchkey"),
            format!("/k/pods/{UID}/volumes/kubernetes.io~csi/../mount"),
            format!("/k/pods/{UID}/volumes/kubernetes.io~csi/./mount"),
            format!("/k/pods/{UID}/volumes/kubernetes.io~csi//mount"),
            format!("/k/pods/{UID}/volumes/kubernetes.io~csi/a/../mount"),
            format!("/k/pods/{UID}/volumes/kubernetes.io~empty-dir/latchkey/mount"),
            format!("/k/pods/../pods/{UID}/volumes/kubernetes.io~csi/latchkey/mount"),
            "/k/pods/web/volumes/kubernetes.io~csi/latchkey/mount".to_owned(),
            format!("{}/", target()),
            format!("/other{}", target()),
        ] {
            let (code, text) = refused(|r| r.target_path = path.clone());
            assert_eq!(code, Code::InvalidArgument, "{path}");
            assert!(text.contains("target_path"), "{path}: {text}");
        }
    }

    #[test]
    fn an_attribute_that_does_not_exist_is_named() {
        let (code, text) = refused(|r| {
            r.volume_context.insert("secret".into(), "[]".into());
        });
        assert_eq!(code, Code::InvalidArgument);
        assert!(text.contains("\"secret\""), "{text}");
    }

    #[test]
    fn a_volume_that_the_pod_could_write_in_is_refused() {
        let (code, text) = refused(|r| r.readonly = false);
        assert_eq!(code, Code::FailedPrecondition);
        assert!(text.contains("readOnly: true"), "{text}");
    }

    fn with_files(group: &str) -> NodePublishVolumeRequest {
        let mut request = right();
        let secrets = ("secrets".to_owned(), "[\"a\"]".to_owned());
        request.volume_context.extend([secrets]);
        let capability = request.volume_capability.as_mut().expect("one");
        capability.access_type = Some(AccessType::Mount(MountVolume {
            volume_mount_group: group.into(),
            ..MountVolume::default()
        }));
        request
    }

    #[test]
    fn files_are_asked_for_by_an_attribute_and_belong_to_the_pods_group() {
        for (text, group) in [("", None), ("0", Some(0)), ("2000", Some(2000))] {
            let publish = Publish::parse(with_files(text), Path::new("/k")).expect("it is right");
            let files = publish.files.expect("they are right").expect("files");
            assert_eq!((&*files.secrets, files.group), ("[\"a\"]", group));
        }
        // Without files there is nothing to own.
        let mut without = with_files("2000");
        without.volume_context.remove("secrets");
        let publish = Publish::parse(without, Path::new("/k")).expect("it is right");
        assert_eq!(publish.files.expect("they are right"), None);
    }

    #[test]
    fn a_group_that_is_no_number_and_a_list_without_end_are_refused() {
        for group in ["app", "-1", "4294967295", "4294967296", "1,mode=0777"] {
            let (code, text) = refused(|r| *r = with_files(group));
            assert_eq!(code, Code::InvalidArgument, "{group}");
            assert!(text.contains("volume_mount_group"), "{text}");
        }
        let (code, text) = refused(|r| {
            let long = "x".repeat(SECRETS_LIMIT + 1);
            r.volume_context.insert("secrets".into(), long);
        });
        assert_eq!(code, Code::InvalidArgument);
        assert!(text.contains("\"secrets\""), "{text}");
    }
}
