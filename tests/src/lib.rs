//! stub

pub mod jwt;
