//! What the kubelet may call, by path: CSI's identity and node services, and the registration that makes the driver
//! known to the kubelet.

use super::DRIVER;
use super::grpc::{unary, unimplemented};
use super::node::NodeService;
use super::proto::{
    Empty, NodeCapabilities, NodeCapability, NodeInfo, NodeRpc, PluginInfo, PluginName,
    RegistrationStatus,
};
use hyper::body::Incoming;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::body::Body;

/// `NodeServiceCapability.RPC.Type`, in csi.proto.
const VOLUME_MOUNT_GROUP: i32 = 6;

/// The plugin as the kubelet sees it, on both of its sockets.
#[derive(Debug)]
pub(super) struct Plugin {
    pub(super) node: Arc<NodeService>,
    /// The socket of CSI's services.
    pub(super) endpoint: PathBuf,
}

impl Plugin {
    /// Answers one call.
    pub(super) async fn call(&self, request: http::Request<Incoming>) -> http::Response<Body> {
        let node = self.node.clone();
        match request.uri().path() {
            "/csi.v1.Identity/GetPluginInfo" => {
                unary(request, |Empty {}| async { Ok(plugin_name()) }).await
            }
            // No controller, no topology: nothing beyond the minimum.
            "/csi.v1.Identity/GetPluginCapabilities" => {
                unary(request, |Empty {}| async { Ok(Empty {}) }).await
            }
            "/csi.v1.Node/NodeGetCapabilities" => {
                unary(request, |Empty {}| async { Ok(capabilities()) }).await
            }
            // Not saying otherwise means ready: the mounter listens only when it can publish.
            "/csi.v1.Identity/Probe" => unary(request, |Empty {}| async { Ok(Empty {}) }).await,
            "/csi.v1.Node/NodeGetInfo" => {
                let node_id = node.name.clone();
                unary(request, |Empty {}| async { Ok(NodeInfo { node_id }) }).await
            }
            "/csi.v1.Node/NodePublishVolume" => {
                unary(request, |asked| async move { node.publish(asked).await }).await
            }
            "/csi.v1.Node/NodeUnpublishVolume" => {
                unary(request, |asked| async move { node.unpublish(asked).await }).await
            }
            "/pluginregistration.Registration/GetInfo" => {
                let info = PluginInfo {
                    kind: "CSIPlugin".into(),
                    name: DRIVER.into(),
                    endpoint: self.endpoint.to_string_lossy().into_owned(),
                    supported_versions: vec!["1.0.0".into()],
                };
                unary(request, |Empty {}| async { Ok(info) }).await
            }
            "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                unary(request, |status| async move { Ok(registered(&status)) }).await
            }
            path => unimplemented(path),
        }
    }
}

fn plugin_name() -> PluginName {
    PluginName {
        name: DRIVER.into(),
        vendor_version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// The kubelet passes the pod's group. No staging, no statistics, no expansion.
fn capabilities() -> NodeCapabilities {
    let rpc = NodeRpc {
        kind: VOLUME_MOUNT_GROUP,
    };
    NodeCapabilities {
        capabilities: vec![NodeCapability { rpc: Some(rpc) }],
    }
}

fn registered(status: &RegistrationStatus) -> Empty {
    if status.plugin_registered {
        tracing::info!("the kubelet has registered the driver");
    } else {
        tracing::error!(
            error = status.error,
            "the kubelet has not registered the driver; it tries again"
        );
    }
    Empty {}
}
