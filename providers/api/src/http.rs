//! HTTP clients for providers: with TLS and without.
//!
//! A client that only ever speaks plain HTTP, to an engine on this host or a worker, need not read the system's
//! certificates, which takes longer than its first call.

use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore};

/// Begins a client that trusts no certificate: for plain HTTP only.
pub fn plain() -> ClientBuilder {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.map(|builder| {
        builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    });
    match config {
        Ok(config) => reqwest::Client::builder().tls_backend_preconfigured(config),
        // This provider knows these versions.
        Err(_) => secure(),
    }
}

/// Begins a client that trusts what the system trusts.
pub fn secure() -> ClientBuilder {
    if CryptoProvider::get_default().is_none() {
        // Whoever was first has made it this one, or another that does as well.
        let _installed = ring::default_provider().install_default().is_ok();
    }
    reqwest::Client::builder()
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_can_be_built() {
        assert!(super::plain().build().is_ok());
        assert!(super::secure().build().is_ok());
    }
}
