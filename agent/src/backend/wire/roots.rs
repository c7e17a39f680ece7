//! The CAs that the clouds' certificates are checked against.

use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// The machine's CAs, or those of `SSL_CERT_FILE`. They are read once, so that all connections trust the same, whatever
/// becomes of the file.
#[derive(Clone)]
pub(crate) struct Roots {
    store: Arc<RootCertStore>,
    /// How many certificates or files cannot be used.
    ignored: usize,
    /// The first error of a file.
    error: Option<Arc<str>>,
}

// === impl Roots ===

impl Roots {
    /// Returns none: for an agent that calls no cloud.
    pub(crate) fn none() -> Self {
        Self {
            store: Arc::new(RootCertStore::empty()),
            ignored: 0,
            error: None,
        }
    }

    /// Reads them.
    pub(crate) fn load() -> Self {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        let (_, ignored) = store.add_parsable_certificates(found.certs);
        Self {
            store: Arc::new(store),
            ignored: ignored + found.errors.len(),
            error: found.errors.first().map(|error| error.to_string().into()),
        }
    }

    /// Whether there are none, so that no cloud can be called.
    pub(crate) fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// What is wrong with them, if anything is.
    pub(crate) fn complaint(&self) -> Option<String> {
        let Self { ignored, error, .. } = self;
        (*ignored > 0).then(|| {
            let why = error.as_ref().map(|error| format!(": {error}"));
            format!(
                "{ignored} of the CA certificates or files cannot be used{}",
                why.unwrap_or_default()
            )
        })
    }

    /// Returns how to speak TLS with whom they vouch for.
    pub(super) fn tls(&self) -> ClientConfig {
        let config = ClientConfig::builder().with_root_certificates(self.store.clone());
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".into()];
        config
    }
}
