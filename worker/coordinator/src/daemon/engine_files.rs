//! The files of the `engine` scope, for the checks.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::core::check::{Certificate, Files, KeyFile, Secret};
use crate::engine::etcd::Settings;

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Looks at the files. Waits for the file system.
pub fn inspect(settings: &Settings) -> Files {
    let Settings { ca, certificate, key, password_file, .. } = settings;
    let is_set = |(_, path): &(&str, &String)| !path.is_empty();
    let named = |option: &str, path: &str| format!("{option} {path}");
    let certificates = [("ca", ca), ("certificate", certificate)].into_iter().filter(is_set);
    let secrets = [("key", key), ("password_file", password_file)].into_iter().filter(is_set);
    Files {
        certificates: certificates
            .map(|(option, path)| (named(option, path), read_certificates(path).and_then(|all| parse(&all))))
            .collect(),
        key: (!key.is_empty())
            .then(|| KeyFile { file: named("key", key), outcome: matches(certificate, key) }),
        secrets: secrets
            .map(|(option, path)| Secret {
                file: named(option, path),
                mode: fs::metadata(path)
                    .map(|file| file.permissions().mode() & 0o7777)
                    .map_err(|error| error.to_string()),
            })
            .collect(),
    }
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path);
    match file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

fn read_certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match all {
        Ok(all) if all.is_empty() => Err("contains no certificate in PEM format".to_owned()),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("is no PEM file: {error}")),
    }
}

fn parse(all: &[CertificateDer<'_>]) -> Result<Vec<Certificate>, String> {
    let parse = |der: &CertificateDer<'_>| {
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|error| format!("contains a certificate that cannot be read: {error}"))?;
        let validity = parsed.validity();
        Ok(Certificate {
            name: parsed.subject().to_string(),
            from: validity.not_before.timestamp(),
            until: validity.not_after.timestamp(),
        })
    };
    all.iter().map(parse).collect()
}

/// Whether the private key belongs to the first certificate.
fn matches(certificate: &str, key: &str) -> Result<(), String> {
    let certificates = read_certificates(certificate).map_err(|error| format!("`certificate` {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| format!("contains no private key that can be used: {error}"))?;
    match CertifiedKey::from_der(certificates, key, &ring::default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err("the key of another certificate".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
