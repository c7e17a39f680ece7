//! stub

pub mod jwt;
pub mod kube;
