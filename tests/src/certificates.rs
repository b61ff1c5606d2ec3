//! A certification authority of a test, and the certificates that it issues.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certification authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
    /// The file of its certificate.
    pub certificate: PathBuf,
}

/// The files of a certificate and its key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Creates an authority, and writes its files into a directory that exists.
    pub fn create(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let text = params.self_signed(&key).unwrap().pem();
        let certificate = directory.join(format!("{name}.pem"));
        fs::write(&certificate, text).unwrap();
        Self { issuer: Issuer::new(params, key), directory: directory.to_owned(), certificate }
    }

    /// Issues a certificate for servers and clients. `name` is its common name and that of its files; `hosts`
    /// are the host names and addresses for which a client accepts it.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Issued {
        self.sign(name, hosts, |_| ())
    }

    /// Issues a certificate that has expired.
    pub fn issue_expired(&self, name: &str, hosts: &[&str]) -> Issued {
        self.sign(name, hosts, |params| params.not_after = date_time_ymd(2001, 2, 3))
    }

    fn sign(&self, name: &str, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let text = params.signed_by(&key, &self.issuer).unwrap().pem();
        let file = |ending: &str| self.directory.join(format!("{name}.{ending}"));
        let issued = Issued { certificate: file("crt"), key: file("key") };
        fs::write(&issued.certificate, text).unwrap();
        fs::write(&issued.key, key.serialize_pem()).unwrap();
        issued
    }
}
