//! What stands in a certificate, and how one is made for those who have no authority of their own. Any authority will do
//! whose certificates carry our one DNS name and may be used at both ends of a connection.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Peer, Role, credentials::left};
use crate::error::{Doing, Error, ErrorKind, Result};

/// How long an authority of ours is good.
const AUTHORITY_DAYS: u32 = 3650;
/// How long a certificate of ours is good.
const DAYS: u32 = 365;
/// With so little left one is made anew.
const RENEW: Duration = Duration::from_secs(60 * 60 * 24 * 60);
const DAY: Duration = Duration::from_secs(60 * 60 * 24);

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whose it is.
    pub peer: Peer,
    /// When it ends to be good.
    pub expires: SystemTime,
}

/// Reads a certificate; its signature is not looked at.
///
/// # Errors
/// Why it cannot be that of a peer.
pub fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let names = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let names = names.map(|names| names.value.general_names.clone()).unwrap_or_default();
    let mut peers = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Peer::named(name),
        _ => None,
    });
    let peer = peers.next().ok_or("it names neither a host (NAME.host.lagan) nor a router (router.lagan)")?;
    if peers.next().is_some() {
        return Err("it names more than one host or router".to_owned());
    }
    let end = parsed.validity().not_after.timestamp();
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap_or_default());
    Ok(Facts { peer, expires })
}

/// Whole days for which a certificate is good from now on; 0 where it is no more.
#[must_use]
pub fn days_left(expires: SystemTime) -> u64 {
    left(expires).as_secs() / DAY.as_secs()
}

/// What was done about one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The file of the certificate; its key lies beside it.
    pub path: PathBuf,
    /// It was made now, and not before.
    pub new: bool,
    /// When it ends to be good.
    pub expires: SystemTime,
}

/// Makes the certificates of these roles in a directory, where they are missing or end soon, by the authority that lies
/// there; makes that too where there is none. What is there and good stays.
///
/// # Errors
/// `Unavailable` where the authority there has no key, or cannot be read; those of writing.
pub fn make(directory: &Path, roles: &[Role]) -> Result<Vec<Made>> {
    fs::create_dir_all(directory).doing(|| format!("make {}", directory.display()))?;
    let issuer = authority(directory)?;
    roles.iter().map(|role| ensure(directory, role, &issuer)).collect()
}

fn broken(what: String) -> impl FnOnce(rcgen::Error) -> Error {
    move |error| Error::new(ErrorKind::Unavailable, what).because(error)
}

fn authority(directory: &Path) -> Result<Issuer<'static, KeyPair>> {
    let (path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
    let read = |path: &Path| fs::read_to_string(path).doing(|| format!("read {}", path.display()));
    if !path.exists() && !key_path.exists() {
        let mut params = params("Lagan", AUTHORITY_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let make = || {
            let key = KeyPair::generate()?;
            Ok((params.self_signed(&key)?.pem(), key))
        };
        let (certificate, key) = make().map_err(broken("make an authority".to_owned()))?;
        write(&key_path, &key.serialize_pem(), 0o600)?;
        write(&path, &certificate, 0o644)?;
    }
    let what = format!("use the authority {}", path.display());
    let key = KeyPair::from_pem(&read(&key_path)?).map_err(broken(what.clone()))?;
    Issuer::from_ca_cert_pem(&read(&path)?, key).map_err(broken(what))
}

fn ensure(directory: &Path, role: &Role, issuer: &Issuer<'_, KeyPair>) -> Result<Made> {
    let (name, peer) = (role.file(), role.peer());
    let (path, key_path) = (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
    let signed = |found: &CertificateDer<'_>| is_signed(found, directory);
    let there = CertificateDer::from_pem_file(&path).ok().filter(signed).and_then(|found| facts(&found).ok());
    if let Some(there) = there.filter(|there| there.peer == peer && left(there.expires) > RENEW)
        && key_path.exists()
    {
        return Ok(Made { path, new: false, expires: there.expires });
    }
    let mut params = params(&peer.to_string(), DAYS);
    let dns_name = peer.dns_name().try_into().map_err(broken(format!("name {peer}")))?;
    params.subject_alt_names = vec![rcgen::SanType::DnsName(dns_name)];
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let make = || {
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, issuer)?, key))
    };
    let (certificate, key) = make().map_err(broken(format!("make the certificate of {peer}")))?;
    write(&key_path, &key.serialize_pem(), 0o600)?;
    write(&path, &certificate.pem(), 0o644)?;
    let facts = facts(certificate.der()).map_err(|cause| Error::new(ErrorKind::Broken, cause))?;
    Ok(Made { path, new: true, expires: facts.expires })
}

/// Whether the authority that lies there now has signed it, and not one that was there before.
fn is_signed(certificate: &CertificateDer<'_>, directory: &Path) -> bool {
    let Ok(authority) = CertificateDer::from_pem_file(directory.join("ca.crt")) else { return false };
    let parsed = (X509Certificate::from_der(&authority), X509Certificate::from_der(certificate));
    let (Ok((_, authority)), Ok((_, certificate))) = parsed else { return false };
    certificate.verify_signature(Some(authority.public_key())).is_ok()
}

/// A certificate from an hour ago, since clocks differ, for so many days.
fn params(common_name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // At most 64 letters (RFC 5280, ub-common-name); it is for people, the DNS name is what counts.
    params.distinguished_name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + DAY * days).into();
    params
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let what = || format!("write {}", path.display());
    let directory = path.parent().unwrap_or(Path::new("."));
    // Under another name first: whoever reads it meanwhile finds the old one, or the new one.
    let mut file = tempfile::Builder::new()
        .make_in(directory, |name| fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(name))
        .doing(what)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).doing(what)?;
    file.persist(path).map(drop).map_err(|error| Error::io(what(), error.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_good_stays() {
        let directory = tempfile::tempdir().unwrap();
        let roles = [Role::Router, Role::Host("n1".parse().unwrap())];
        let first = make(directory.path(), &roles).unwrap();
        assert!(first.iter().all(|made| made.new), "{first:?}");
        assert!(first.iter().all(|made| left(made.expires) > DAY * 364), "{first:?}");
        let authority = fs::read(directory.path().join("ca.crt")).unwrap();
        let again = make(directory.path(), &[roles[1].clone(), Role::Host("n2".parse().unwrap())]).unwrap();
        assert_eq!([again[0].new, again[1].new], [false, true]);
        assert_eq!(fs::read(directory.path().join("ca.crt")).unwrap(), authority);
        // Another host's file under this one's name is no certificate of it.
        fs::copy(directory.path().join("host-n2.crt"), directory.path().join("host-n1.crt")).unwrap();
        assert!(make(directory.path(), &roles[1..]).unwrap()[0].new);
        // Nor is one of an authority that was there before.
        let other = tempfile::tempdir().unwrap();
        make(other.path(), &roles).unwrap();
        for file in ["ca.crt", "ca.key"] {
            fs::copy(other.path().join(file), directory.path().join(file)).unwrap();
        }
        assert!(make(directory.path(), &roles).unwrap().iter().all(|made| made.new));
        assert!(make(directory.path(), &roles).unwrap().iter().all(|made| !made.new));
        // Without its key an authority cannot sign.
        fs::remove_file(directory.path().join("ca.key")).unwrap();
        assert!(make(directory.path(), &[Role::Host("n3".parse().unwrap())]).is_err());
    }

    /// What a certificate says is believed only where it is one name of one peer.
    #[test]
    fn hostile_input() {
        let directory = tempfile::tempdir().unwrap();
        let made = make(directory.path(), &[Role::Host("n1".parse().unwrap()), Role::Router]).unwrap();
        let read = |made: &Made| CertificateDer::from_pem_file(&made.path).unwrap().to_vec();
        let samples: Vec<_> = made.iter().map(read).collect();
        let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
        crate::hostile::feed("certificates", &samples, |input| {
            if let Ok(facts) = facts(&CertificateDer::from_slice(input)) {
                assert_eq!(Peer::named(&facts.peer.dns_name()), Some(facts.peer));
                std::hint::black_box(days_left(facts.expires));
            }
        });
        crate::hostile::feed("peer-names", &[b"n1.host.lagan", b"router.lagan"], |input| {
            let name = String::from_utf8_lossy(input);
            assert!(Peer::named(&name).is_none_or(|peer| peer.dns_name() == name), "{name:?}");
        });
    }
}
