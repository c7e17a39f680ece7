//! The sandbox: a fake cluster and a fake cloud that are as strict as the real ones, workloads as real processes in
//! real cgroups, and the agent itself as a process between them. None of it is in the product.

pub mod agent;
pub mod aws;
pub mod azure;
pub mod binaries;
pub mod clouds;
pub mod egress;
pub mod fake;
pub mod gcp;
pub mod jwt;
pub mod kube;
pub mod kubelet;
pub mod machine;
pub mod page;
pub mod password_store;
pub mod pid_namespace;
pub mod process;
pub mod sandbox;
pub mod skip;
mod until;
pub mod workload;

pub use until::{PATIENCE, until};

#[cfg(test)]
mod docs;
