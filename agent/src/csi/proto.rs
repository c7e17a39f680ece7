//! The messages of CSI 1.x (csi.proto, package `csi.v1`) and of the kubelet's plugin registration
//! (`pluginregistration`, v1) that the mounter uses, with the field numbers of those files. Fields not listed here are
//! skipped when read.
//!
//! Written by hand, not generated: they are few, their numbers never change, and the build needs no protobuf compiler.
//! A real kubelet of 1.20 has been seen to read and write the same (docs/csi.md).

use prost::{Message, Oneof};
use std::collections::HashMap;
use std::fmt;

/// Any message without fields.
#[derive(Clone, Copy, Message)]
pub struct Empty {}

/// `GetPluginInfoResponse`.
#[derive(Clone, Message)]
pub struct PluginName {
    /// The driver.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// `NodeGetInfoResponse`.
#[derive(Clone, Message)]
pub struct NodeInfo {
    /// The node's name.
    #[prost(string, tag = "1")]
    pub node_id: String,
}

/// `NodeGetCapabilitiesResponse`.
#[derive(Clone, Message)]
pub struct NodeCapabilities {
    /// What the node service can do.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<NodeCapability>,
}

/// `NodeServiceCapability`.
#[derive(Clone, Copy, Message)]
pub struct NodeCapability {
    /// The only kind that there is.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<NodeRpc>,
}

/// `NodeServiceCapability.RPC`.
#[derive(Clone, Copy, Message)]
pub struct NodeRpc {
    /// Which: `VOLUME_MOUNT_GROUP` is 6.
    #[prost(int32, tag = "1")]
    pub kind: i32,
}

/// `NodePublishVolumeRequest`. It may hold tokens, so `Debug` prints none of its fields.
#[derive(Clone, Message)]
#[prost(skip_debug)]
pub struct NodePublishVolumeRequest {
    /// The kubelet's name for the volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where to mount it.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// What kind of volume to publish.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Whether the containers get it read-only.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// Where `serviceAccountTokenInSecrets` puts the tokens.
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    /// The pod's own attributes, and what the kubelet adds.
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

impl fmt::Debug for NodePublishVolumeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodePublishVolumeRequest(..)")
    }
}

/// `VolumeCapability`.
#[derive(Clone, Message)]
pub struct VolumeCapability {
    /// A block device or a filesystem.
    #[prost(oneof = "AccessType", tags = "1, 2")]
    pub access_type: Option<AccessType>,
    /// Who may use it.
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessMode>,
}

/// `VolumeCapability.access_type`.
#[derive(Clone, Oneof)]
pub enum AccessType {
    /// A block device.
    #[prost(message, tag = "1")]
    Block(Empty),
    /// A filesystem.
    #[prost(message, tag = "2")]
    Mount(MountVolume),
}

/// `VolumeCapability.MountVolume`.
#[derive(Clone, Message)]
pub struct MountVolume {
    /// The filesystem.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Options for the mount.
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
    /// The pod's `fsGroup`, as a number; empty if it has none.
    #[prost(string, tag = "3")]
    pub volume_mount_group: String,
}

/// `VolumeCapability.AccessMode`.
#[derive(Clone, Copy, Message)]
pub struct AccessMode {
    /// `SINGLE_NODE_WRITER` is 1.
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

/// `NodeUnpublishVolumeRequest`.
#[derive(Clone, Message)]
pub struct NodeUnpublishVolumeRequest {
    /// The kubelet's name for the volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it is.
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `PluginInfo` of the registration.
#[derive(Clone, Message)]
pub struct PluginInfo {
    /// `CSIPlugin`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// The driver.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The socket of its services.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// The versions of CSI that it speaks.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `RegistrationStatus`.
#[derive(Clone, Message)]
pub struct RegistrationStatus {
    /// Whether the kubelet has accepted the driver.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}
