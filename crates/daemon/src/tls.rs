//! The certificate of a daemon that listens on the network: given, or its own.
//!
//! `HOME/serve/tls/cert.pem` and `key.pem`. Where there are none, a self-signed one is made; whoever wants one that browsers know puts
//! theirs there.

use std::path::Path;
use std::sync::Arc;

use keyframe_engine::state::durable;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, IoContext as _};

/// What a server shows and uses.
///
/// # Errors
/// When there is one that cannot be used, or none can be made.
pub fn config(serve: &Path, host: &str) -> Result<Arc<ServerConfig>, Error> {
    let dir = serve.join("tls");
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    if !cert.try_exists().or_io("look at", &cert)? && !key.try_exists().or_io("look at", &key)? {
        let names = vec![host.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names);
        let made = made.map_err(|error| Error::Refused(format!("no certificate can be made: {error}")))?;
        durable::create_private_dir(&dir)?;
        durable::replace(&key, made.signing_key.serialize_pem().as_bytes())?;
        durable::replace(&cert, made.cert.pem().as_bytes())?;
    }
    let unusable = |what: String| Error::Refused(format!("{} cannot be used: {what}", dir.display()));
    let certs = CertificateDer::pem_file_iter(&cert).map_err(|error| unusable(error.to_string()))?;
    let certs: Vec<_> = certs.collect::<Result<_, _>>().map_err(|error| unusable(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unusable(error.to_string()))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Arc::new(config))
}
