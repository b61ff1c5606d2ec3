//! The files of the `engine` scope: certificates, the private key, the password.

use super::{CheckName, Found, Of, Verdict};
use crate::core::time::utc;

/// How many days before the end of a certificate there is a warning.
const NOTICE_DAYS: i64 = 30;
const DAY: i64 = 86_400;
/// Who must not read a secret, and who must not change it.
const OTHERS: u32 = 0o007;
const GROUP_WRITES: u32 = 0o020;

/// What is in the files.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The files with certificates: `ca` and `certificate`.
    pub certificates: Vec<(String, Result<Vec<Certificate>, String>)>,
    /// The private key; `None`: there is none.
    pub key: Option<Key>,
    /// The files whose contents must be secret.
    pub secrets: Vec<Secret>,
}

/// A certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The name that it certifies.
    pub name: String,
    /// When it begins to be valid, in seconds since 1970.
    pub from: i64,
    /// When it ends, in seconds since 1970.
    pub until: i64,
}

/// A private key.
#[derive(Clone, Debug)]
pub struct Key {
    /// The option and the path.
    pub file: String,
    /// Whether it is the key of the certificate; the error says why it is not, or why that cannot be found out.
    pub outcome: Result<(), String>,
}

/// A file whose contents must be secret.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The option and the path.
    pub file: String,
    /// Its permissions, or why they cannot be read.
    pub mode: Result<u32, String>,
}

pub(super) fn check(files: &Files, now: i64, found: &mut Found) {
    for (file, certificates) in &files.certificates {
        match certificates {
            Ok(certificates) => {
                // An authority that has ended does no harm beside one that has not: that is how authorities are replaced.
                let has_valid = certificates.iter().any(|one| one.from <= now && now < one.until);
                let is_authority = file.starts_with("ca ");
                for certificate in certificates {
                    validity(file, certificate, now, is_authority && has_valid, found);
                }
            }
            Err(error) => {
                let of = Of { check: CheckName::Certificate, subject: file, limit: "valid" };
                found.add(
                    of,
                    Verdict::Failure,
                    error,
                    "Correct the file, or the option in the `engine` scope.",
                );
            }
        }
    }
    if let Some(Key { file, outcome }) = &files.key {
        let of = Of { check: CheckName::Key, subject: file, limit: "the key of `certificate`" };
        match outcome {
            Ok(()) => found.ok(of, "the key of `certificate`"),
            Err(error) => {
                let remedy = "Write the key that `certificate` was issued for, without a password.";
                found.add(of, Verdict::Failure, error, remedy);
            }
        }
    }
    for Secret { file, mode } in &files.secrets {
        let limit = "no access for others, no write access for the group";
        let of = Of { check: CheckName::Permissions, subject: file, limit };
        match mode {
            Ok(mode) if mode & (OTHERS | GROUP_WRITES) == 0 => found.ok(of, format!("{mode:04o}")),
            Ok(mode) => {
                let remedy = "Whoever can read it can write the keys of the cluster. Run: chmod o=,g-w FILE";
                found.add(of, Verdict::Failure, format!("{mode:04o}"), remedy);
            }
            Err(error) => {
                let remedy = "The coordinator's user must be able to reach the file.";
                found.add(of, Verdict::Failure, error, remedy);
            }
        }
    }
}

fn validity(file: &str, certificate: &Certificate, now: i64, is_replaced: bool, found: &mut Found) {
    let Certificate { name, from, until } = certificate;
    let subject = if name.is_empty() { file.to_owned() } else { format!("{file}: {name}") };
    let limit = format!("valid for another {NOTICE_DAYS} days");
    let of = Of { check: CheckName::Certificate, subject: &subject, limit: &limit };
    let date = |seconds: i64| utc(u64::try_from(seconds).unwrap_or_default().saturating_mul(1_000));
    let days = |seconds: i64| match seconds / DAY {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    };
    let worst = if is_replaced { Verdict::Warning } else { Verdict::Failure };
    if now < *from {
        let remedy = "Correct the clock of this host, or issue the certificate again.";
        found.add(of, worst, format!("not valid before {}", date(*from)), remedy);
    } else if now >= *until {
        let remedy = match is_replaced {
            true => "Remove it from the file.",
            false => "Issue the certificate again. The coordinator reads the file at its next connection.",
        };
        found.add(of, worst, format!("ended at {}", date(*until)), remedy);
    } else if until - now < NOTICE_DAYS * DAY {
        let value = format!("until {}, for {}", date(*until), days(until - now));
        let remedy = "Issue the certificate again. The coordinator reads the file at its next connection.";
        found.add(of, Verdict::Warning, value, remedy);
    } else {
        found.ok(of, format!("until {}, for {}", date(*until), days(until - now)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{named, verdicts};
    use super::*;

    const NOW: i64 = 1_732_874_400;

    fn certificate(from_days: i64, until_days: i64) -> Certificate {
        Certificate { name: "CN=mx1".to_owned(), from: NOW + from_days * DAY, until: NOW + until_days * DAY }
    }

    fn checked(files: &Files) -> Found {
        let mut found = Found(Vec::new());
        check(files, NOW, &mut found);
        found
    }

    fn of_certificates(file: &str, certificates: Vec<Certificate>) -> Vec<Verdict> {
        let certificates = vec![(format!("{file} /f"), Ok(certificates))];
        verdicts(checked(&Files { certificates, ..Files::default() }), CheckName::Certificate)
    }

    #[test]
    fn a_certificate_must_be_valid_for_another_month() {
        for (from, until, expected) in [
            (-10, 31, Verdict::Ok),
            (-10, 30, Verdict::Ok),
            (-10, 29, Verdict::Warning),
            (-10, 0, Verdict::Failure),
            (-10, -1, Verdict::Failure),
            (1, 100, Verdict::Failure),
        ] {
            assert_eq!(
                of_certificates("certificate", vec![certificate(from, until)]),
                [expected],
                "{from} {until}"
            );
        }
        let certificates = vec![("ca /f".to_owned(), Ok(vec![certificate(-10, 100)]))];
        let found = checked(&Files { certificates, ..Files::default() });
        let expected =
            ("ca /f: CN=mx1".to_owned(), Verdict::Ok, "until 2025-03-09T10:00:00Z, for 100 days".to_owned());
        let found = named(found, CheckName::Certificate).remove(0);
        assert_eq!((found.0, found.1, found.2), expected);
    }

    #[test]
    fn an_authority_that_ended_may_stand_beside_its_successor() {
        let both = vec![certificate(-100, -1), certificate(-10, 100)];
        assert_eq!(of_certificates("ca", both.clone()), [Verdict::Warning, Verdict::Ok]);
        assert_eq!(of_certificates("certificate", both), [Verdict::Failure, Verdict::Ok]);
        assert_eq!(of_certificates("ca", vec![certificate(-100, -1)]), [Verdict::Failure]);
    }

    #[test]
    fn a_key_must_be_that_of_the_certificate() {
        for (outcome, expected) in [(Ok(()), Verdict::Ok), (Err("another".to_owned()), Verdict::Failure)] {
            let key = Some(Key { file: "key /k".to_owned(), outcome });
            assert_eq!(verdicts(checked(&Files { key, ..Files::default() }), CheckName::Key), [expected]);
        }
    }

    #[test]
    fn others_must_not_read_a_secret() {
        for (mode, expected) in [
            (0o600, Verdict::Ok),
            (0o640, Verdict::Ok),
            (0o440, Verdict::Ok),
            (0o644, Verdict::Failure),
            (0o660, Verdict::Failure),
            (0o601, Verdict::Failure),
        ] {
            let secrets = vec![Secret { file: "key /k".to_owned(), mode: Ok(mode) }];
            let found = checked(&Files { secrets, ..Files::default() });
            assert_eq!(verdicts(found, CheckName::Permissions), [expected], "{mode:o}");
        }
    }
}
