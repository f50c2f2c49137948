//! TLS for the listening socket: reads certificate, key and authorities from PEM files and makes rustls' settings
//! of them. Mistakes are named with the file, before the model is loaded. It accepts no connections itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// Which files, and what is asked of clients.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, followed by those between it and the authority's.
    pub certificate: PathBuf,
    /// Its private key; `None`: it is in the certificate's file.
    pub key: Option<PathBuf>,
    /// Authorities that clients' certificates must come from; `None`: clients need none.
    pub client_authorities: Option<PathBuf>,
    /// Whether a client without a certificate is let in all the same.
    pub client_optional: bool,
}

/// Why TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{flag} {}: {reason}", path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not go together.
    #[error("--ssl-certfile and --ssl-keyfile: {0}")]
    Pair(rustls::Error),
}

impl TlsFiles {
    /// Reads the files.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = certificates("--ssl-certfile", &self.certificate)?;
        let (flag, path) = match &self.key {
            Some(path) => ("--ssl-keyfile", path),
            None => ("--ssl-certfile", &self.certificate),
        };
        let key = PrivateKeyDer::from_pem_file(path)
            .map_err(|e| file(flag, path, format!("no private key (PEM, without password) could be read: {e}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Pair)?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let flag = "--ssl-ca-certs";
                let mut roots = RootCertStore::empty();
                for authority in certificates(flag, path)? {
                    roots.add(authority).map_err(|e| file(flag, path, e.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if self.client_optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| file(flag, path, e.to_string()))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn file(flag: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::File { flag, path: path.to_owned(), reason }
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|e| file(flag, path, format!("no certificates (PEM) could be read: {e}")))?;
    if all.is_empty() {
        return Err(file(flag, path, "it has no certificate (PEM)".into()));
    }
    Ok(all)
}
