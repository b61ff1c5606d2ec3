//! Files of certificates, private keys and passwords.
//!
//! The errors say what a file is or does; whoever has named the file writes that before them.

use std::fs;
use std::io::Read as _;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The most bytes of a file that are read.
const MAX_FILE: u64 = 1 << 20;

/// Reads a file.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path);
    match file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// The certificates in a file: one at least.
///
/// # Errors
/// The file has none, or is not in PEM format.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err("contains no certificate in PEM format".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("is not in PEM format: {error}")),
    }
}

/// The private key in a file.
///
/// # Errors
/// The file has none, or is not in PEM format.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| format!("contains no private key that can be used: {error}"))
}
