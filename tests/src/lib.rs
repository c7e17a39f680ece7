//! stub

pub mod aws;
pub mod jwt;
pub mod kube;
