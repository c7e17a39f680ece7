//! The kubelet, as the mounter meets it: it registers the driver, publishes and unpublishes volumes over gRPC, and
//! passes on tokens that it gets from the API server.

mod grpc;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use latchkey_agent::csi::proto::{
    AccessMode, AccessType, Empty, MountVolume, NodePublishVolumeRequest,
    NodeUnpublishVolumeRequest, PluginInfo, RegistrationStatus, VolumeCapability,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::binaries::sibling_binary;
use crate::jwt::{Bound, Claims};
use crate::kube::{FakeKube, Pod};
use crate::process::Process;
use crate::sandbox::{ACCOUNT, NODE};

pub use grpc::{Connection, Status, call};

/// The driver's name.
pub const DRIVER: &str = "csi.latchkey.dev";

/// Where the kubelet puts tokens.
pub const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// A kubelet's root directory and what it does there.
#[derive(Debug)]
pub struct Kubelet {
    root: TempDir,
}

/// What a pod says about its volume, and what the kubelet adds.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// The pod.
    pub pod: Pod,
    /// Its service account.
    pub account: String,
    /// The volume's name in the pod.
    pub name: String,
    /// The tokens that come with it, by audience, with their lifetimes in seconds.
    pub audiences: Vec<(String, i64)>,
    /// The attributes that the pod gives.
    pub attributes: Vec<(String, String)>,
    /// The pod's `fsGroup`.
    pub group: Option<u32>,
    /// Whether the tokens come as secrets (`serviceAccountTokenInSecrets`).
    pub tokens_in_secrets: bool,
}

// === impl VolumeSpec ===

impl VolumeSpec {
    /// The default volume of a pod of the account [`ACCOUNT`], with a token for AWS.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self {
            pod: pod.clone(),
            account: ACCOUNT.to_owned(),
            name: "latchkey".to_owned(),
            audiences: vec![("sts.amazonaws.com".to_owned(), 600)],
            attributes: Vec::new(),
            group: None,
            tokens_in_secrets: false,
        }
    }

    /// The id that the kubelet gives the volume.
    #[must_use]
    pub fn id(&self) -> String {
        format!("csi-{}-{}", self.pod.uid(), self.name)
    }
}

// === impl Kubelet ===

impl Kubelet {
    /// A kubelet whose root directory is empty.
    ///
    /// # Errors
    ///
    /// If there is no room for it.
    pub fn new() -> io::Result<Self> {
        // Short, because sockets' paths have to be.
        let root = tempfile::Builder::new().prefix("k-").tempdir()?;
        for name in ["pods", "plugins", "plugins_registry"] {
            fs::create_dir(root.path().join(name))?;
        }
        let kubelet = Self { root };
        // Shared, as on a node: what a mounter mounts is seen outside of its container.
        let (at, none) = (kubelet.root(), None::<&str>);
        mount(Some(at), at, none, MsFlags::MS_BIND, none)?;
        // First a mount of its own, where the machine's root is shared: otherwise each mount would be there twice.
        mount(none, at, none, MsFlags::MS_PRIVATE, none)?;
        mount(none, at, none, MsFlags::MS_SHARED, none)?;
        Ok(kubelet)
    }

    /// Its root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The directory of the driver.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.root().join("plugins").join(DRIVER)
    }

    /// The socket of CSI's services.
    #[must_use]
    pub fn endpoint(&self) -> PathBuf {
        self.directory().join("csi.sock")
    }

    /// The socket for the driver's registration.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.root()
            .join("plugins_registry")
            .join(format!("{DRIVER}-reg.sock"))
    }

    /// Starts a mounter that logs everything, in a mount namespace of its own like a container's, and waits until it is
    /// ready.
    ///
    /// # Errors
    ///
    /// If it does not become ready; the text has its output.
    pub async fn mounter(&self) -> io::Result<Process> {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "unchanged"])
            .arg(sibling_binary("sandbox-csi")?)
            .arg("--kubelet-root")
            .arg(self.root())
            .args(["--node", NODE, "--log", "trace"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mounter = Process::start("mounter", &mut command)?;
        mounter.until_line("\"message\":\"ready\"").await?;
        Ok(mounter)
    }

    /// Registers the driver, as the kubelet does when it sees the socket. Returns what the driver says about itself.
    ///
    /// # Errors
    ///
    /// If the driver does not answer.
    pub async fn register(&self) -> Result<PluginInfo, Status> {
        let registry = self.registry();
        let service = "/pluginregistration.Registration";
        let info = call(&registry, &format!("{service}/GetInfo"), &Empty {}).await?;
        let status = RegistrationStatus {
            plugin_registered: true,
            error: String::new(),
        };
        let path = format!("{service}/NotifyRegistrationStatus");
        call::<Empty>(&registry, &path, &status).await?;
        Ok(info)
    }

    /// Where to mount a volume.
    #[must_use]
    pub fn target(&self, pod_uid: &str, volume: &str) -> PathBuf {
        let below = format!("pods/{pod_uid}/volumes/kubernetes.io~csi/{volume}/mount");
        self.root().join(below)
    }

    /// The request that publishes a volume, with new tokens.
    ///
    /// # Errors
    ///
    /// If the directory of the pod's volume cannot be made.
    pub fn request(
        &self,
        kube: &FakeKube,
        volume: &VolumeSpec,
    ) -> io::Result<NodePublishVolumeRequest> {
        let pod = &volume.pod;
        let target = self.target(pod.uid(), &volume.name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        let tokens = tokens(kube, volume).to_string();
        let mut context: HashMap<String, String> = volume.attributes.iter().cloned().collect();
        for (name, value) in [
            ("ephemeral", "true"),
            ("pod.name", pod.name()),
            ("pod.namespace", pod.namespace()),
            ("pod.uid", pod.uid()),
            ("serviceAccount.name", &volume.account),
        ] {
            context.insert(format!("csi.storage.k8s.io/{name}"), value.to_owned());
        }
        let mut secrets = HashMap::new();
        if !volume.audiences.is_empty() {
            let into = if volume.tokens_in_secrets {
                &mut secrets
            } else {
                &mut context
            };
            into.insert(TOKENS.to_owned(), tokens);
        }
        Ok(NodePublishVolumeRequest {
            volume_id: volume.id(),
            target_path: target.to_string_lossy().into_owned(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume {
                    volume_mount_group: volume
                        .group
                        .map(|group| group.to_string())
                        .unwrap_or_default(),
                    ..MountVolume::default()
                })),
                access_mode: Some(AccessMode { mode: 1 }),
            }),
            readonly: true,
            secrets,
            volume_context: context,
        })
    }

    /// Publishes a volume, or publishes it again. Returns the directory that the pod sees.
    ///
    /// # Errors
    ///
    /// What the driver answers.
    pub async fn publish(&self, kube: &FakeKube, volume: &VolumeSpec) -> Result<PathBuf, Status> {
        let request = self.request(kube, volume).map_err(|error| Status {
            code: 13,
            message: error.to_string(),
        })?;
        self.send(&request).await?;
        Ok(PathBuf::from(request.target_path))
    }

    /// Publishes a volume as `request` says.
    ///
    /// # Errors
    ///
    /// What the driver answers.
    pub async fn send(&self, request: &NodePublishVolumeRequest) -> Result<(), Status> {
        let path = "/csi.v1.Node/NodePublishVolume";
        call::<Empty>(&self.endpoint(), path, request)
            .await
            .map(drop)
    }

    /// Unpublishes a volume.
    ///
    /// # Errors
    ///
    /// What the driver answers.
    pub async fn unpublish(&self, volume: &VolumeSpec) -> Result<(), Status> {
        let target = self.target(volume.pod.uid(), &volume.name);
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.id(),
            target_path: target.to_string_lossy().into_owned(),
        };
        let path = "/csi.v1.Node/NodeUnpublishVolume";
        call::<Empty>(&self.endpoint(), path, &request)
            .await
            .map(drop)
    }

    /// The paths below its root where something is mounted, one for each mount.
    ///
    /// # Panics
    ///
    /// If the mounts cannot be read.
    #[must_use]
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the kernel says");
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from)
            .filter(|point| point.starts_with(self.root()))
            .collect()
    }

    /// The directory (`p`) or the record (`v`) that the driver keeps for its only volume.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn of_only_volume(&self, kind: &str) -> PathBuf {
        let entries = fs::read_dir(self.directory().join("run").join(kind));
        let mut entries = entries.expect("the driver's directory").flatten();
        entries.next().expect("the volume's").path()
    }

    /// What the driver keeps for volumes: names of directories, of records, and of what it has not finished with.
    ///
    /// # Panics
    ///
    /// If it is not where a started driver keeps it.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        let run = self.directory().join("run");
        let names = ["p", "staging", "v"].into_iter().flat_map(|directory| {
            let entries = fs::read_dir(run.join(directory)).expect("the driver's directory");
            entries.map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
        });
        names.collect()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // Innermost first.
        let mut mounts = self.mounts();
        mounts.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
        for point in mounts {
            let _ = umount2(&point, MntFlags::MNT_DETACH);
        }
    }
}

/// Tokens of the pod's account, bound to the pod, as the kubelet writes them.
fn tokens(kube: &FakeKube, volume: &VolumeSpec) -> serde_json::Value {
    let issuer = kube.issuer();
    let (namespace, account) = (volume.pod.namespace(), &volume.account);
    let entries = volume.audiences.iter().map(|(audience, seconds)| {
        let account = Bound::new(account, kube.service_account_uid(namespace, account));
        let pod = Bound::new(volume.pod.name(), volume.pod.uid());
        let claims = Claims::new(
            issuer.url(),
            namespace,
            account,
            Some(pod),
            audience,
            *seconds,
        );
        let expires = jiff::Timestamp::from_second(claims.exp).unwrap_or_default();
        let written =
            json!({"token": issuer.sign(&claims), "expirationTimestamp": expires.to_string()});
        (audience.clone(), written)
    });
    entries.collect::<serde_json::Map<_, _>>().into()
}
