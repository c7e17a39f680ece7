//! Delivery by CSI: the mounter `latchkey-csi`, and the protocol between it and the agent.
//!
//! Before a pod's containers start, the kubelet asks the mounter to publish a volume. The mounter makes the pod's
//! directory and passes the pod's identity and tokens on to the agent ([`control`]). Once the agent listens there, the
//! mounter mounts the directory read-only into the pod. It alone has the right to mount, and never sees a secret.
//!
//! Published volumes are recorded in a tmpfs ([`volume::Store`]), so mounter and agent may be restarted in any order.
//! Tokens are not recorded.

pub mod cli;
pub mod proto;

pub(crate) mod control;
pub(crate) mod volume;

mod grpc;
mod mount;
mod node;
mod plugin;
mod publish;
mod socket;

use std::io;
use std::path::Path;

/// The driver's name.
pub(crate) const DRIVER: &str = "csi.latchkey.dev";

/// Adds the path to the error.
fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
