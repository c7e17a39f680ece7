//! Delivery by CSI: `latchkey-csi`, the mounter, and what it and the agent tell each other.
//!
//! The kubelet asks the mounter to publish a volume before a pod's containers start. The mounter makes the pod's
//! directory, passes who the pod is and its tokens on to the agent ([`control`]), which listens in that directory,
//! and mounts it read-only into the pod. It is the only part with the right to mount, and never sees a secret.
//!
//! What is published is remembered in memory of the kernel ([`volume::Store`]), so mounter and agent may be
//! restarted in any order. Tokens are not.

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

/// The error, with the path that it is about.
fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
