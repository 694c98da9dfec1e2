//! Our own certificate, its key and the authority that the others' come from: three files of a directory, read anew
//! whenever they change, so that a certificate is replaced without a restart.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

use super::{HostName, Peer, certs};
use crate::error::{Chain, Error, ErrorKind, Result};

/// What HTTP/2 is called in a handshake.
const H2: &[u8] = b"h2";

/// Whose certificate ours is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// That of a router.
    Router,
    /// That of this host.
    Host(HostName),
}

impl Role {
    /// The files of its certificate and key, without their ending.
    #[must_use]
    pub fn file(&self) -> String {
        match self {
            Self::Router => "router".to_owned(),
            Self::Host(name) => format!("host-{name}"),
        }
    }

    pub(super) fn peer(&self) -> Peer {
        match self {
            Self::Router => Peer::Router,
            Self::Host(name) => Peer::Host(name.clone()),
        }
    }
}

/// The three files, as last read. Clones share them.
#[derive(Clone, Debug)]
pub struct Credentials {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    role: Role,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stamp: Stamp,
    loaded: Loaded,
    /// What was wrong with the newer files, so that it is told once.
    trouble: Option<String>,
}

/// What is made of the files.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    expires: SystemTime,
}

/// When each file was changed, and how long it is. A mounted Secret is replaced by a link to another directory: that
/// changes these too.
type Stamp = [Option<(SystemTime, u64)>; 3];

impl Credentials {
    /// Reads them.
    ///
    /// # Errors
    /// `Unavailable` where a file is missing, unreadable, or does not belong to the others or to this role.
    pub fn read(directory: &Path, role: Role) -> Result<Self> {
        let stamp = stamp(directory, &role);
        let loaded = load(directory, &role)?;
        let state = Mutex::new(State { stamp, loaded, trouble: None });
        Ok(Self { inner: Arc::new(Inner { directory: directory.to_owned(), role, state }) })
    }

    /// Whose they are.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.inner.role
    }

    /// When our certificate ends to be good.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.current().expires
    }

    /// The newest good ones. Newer files that are no good are told in the log, and the older ones stay.
    pub(super) fn current(&self) -> Loaded {
        let Inner { directory, role, state } = &*self.inner;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(directory, role);
        if stamp == state.stamp {
            return state.loaded.clone();
        }
        match load(directory, role) {
            Ok(loaded) => {
                tracing::info!(directory = %directory.display(), "certificates read anew");
                *state = State { stamp, loaded, trouble: None };
            }
            Err(error) => {
                // Files are replaced one after the other: this may be a moment between.
                let trouble = Chain(&error).to_string();
                if state.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(error = trouble, "newer certificates cannot be used: the older ones stay");
                }
                state.trouble = Some(trouble);
            }
        }
        state.loaded.clone()
    }
}

fn paths(directory: &Path, role: &Role) -> [PathBuf; 3] {
    let own = role.file();
    [directory.join("ca.crt"), directory.join(format!("{own}.crt")), directory.join(format!("{own}.key"))]
}

fn stamp(directory: &Path, role: &Role) -> Stamp {
    paths(directory, role).map(|path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    })
}

fn load(directory: &Path, role: &Role) -> Result<Loaded> {
    let [authority, certificate, key] = paths(directory, role);
    let unusable = |path: &Path, cause: &dyn std::fmt::Display| {
        let what = format!("{} cannot be used ({cause}): `lagan certs` makes such files", path.display());
        Error::new(ErrorKind::Unavailable, what)
    };
    let mut roots = RootCertStore::empty();
    for root in read_chain(&authority).map_err(|cause| unusable(&authority, &cause))? {
        roots.add(root).map_err(|cause| unusable(&authority, &cause))?;
    }
    let chain = read_chain(&certificate).map_err(|cause| unusable(&certificate, &cause))?;
    let facts = certs::facts(&chain[0]).map_err(|cause| unusable(&certificate, &cause))?;
    if facts.peer != role.peer() {
        let cause = format!("it is that of {}, not of {}", facts.peer, role.peer());
        return Err(unusable(&certificate, &cause));
    }
    let private = || PrivateKeyDer::from_pem_file(&key).map_err(|cause| unusable(&key, &cause));
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots);
    let broken = |cause: TlsError| unusable(&certificate, &cause);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|cause| unusable(&authority, &cause))?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(broken)?
        .with_client_cert_verifier(Arc::new(Known(verifier)))
        .with_single_cert(chain.clone(), private()?)
        .map_err(broken)?;
    server.alpn_protocols = vec![H2.to_vec()];
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(broken)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyHost { roots, provider }))
        .with_client_auth_cert(chain, private()?)
        .map_err(broken)?;
    client.alpn_protocols = vec![H2.to_vec()];
    // A session that is resumed shows no certificate again.
    client.resumption = rustls::client::Resumption::disabled();
    server.send_tls13_tickets = 0;
    Ok(Loaded { server: Arc::new(server), client: Arc::new(client), expires: facts.expires })
}

/// The certificates of a file, at least one.
fn read_chain(path: &Path) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let chain = read.collect::<std::result::Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if chain.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(chain) }
}

/// How long a certificate is good for from now on; zero where it is no more.
#[must_use]
pub(super) fn left(expires: SystemTime) -> Duration {
    expires.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Takes every certificate of our authority that names a peer, for whoever it is: which host is at an address is learnt
/// from it, and then held against what is expected there.
#[derive(Debug)]
struct AnyHost {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

fn no_peer(cause: String) -> TlsError {
    TlsError::General(cause)
}

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        certs::facts(end_entity).map_err(no_peer)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        Err(no_peer("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes a caller's certificate where it is of our authority and names a peer.
#[derive(Debug)]
struct Known(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Known {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<rustls::server::danger::ClientCertVerified, TlsError> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        certs::facts(end_entity).map_err(no_peer)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        Err(no_peer("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
