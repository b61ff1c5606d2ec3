//! The files of the `engine` scope, for the checks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::core::check::{Certificate, Files, KeyFile, Secret};
use crate::engine::etcd::Settings;
use crate::engine::files;

/// Looks at the files. Waits for the file system.
pub fn inspect(settings: &Settings) -> Files {
    let Settings { ca, certificate, key, password_file, .. } = settings;
    let is_set = |(_, path): &(&str, &String)| !path.is_empty();
    let named = |option: &str, path: &str| format!("{option} {path}");
    let certificates = [("ca", ca), ("certificate", certificate)].into_iter().filter(is_set);
    let secrets = [("key", key), ("password_file", password_file)].into_iter().filter(is_set);
    Files {
        certificates: certificates
            .map(|(option, path)| (named(option, path), certificates_in(path).and_then(|all| parse(&all))))
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

fn certificates_in(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    files::certificates(&files::read(path)?)
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
    let certificates = certificates_in(certificate).map_err(|error| format!("`certificate` {error}"))?;
    let key = files::private_key(&files::read(key)?)?;
    match CertifiedKey::from_der(certificates, key, &ring::default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err("the key of another certificate".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
