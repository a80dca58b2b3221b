//! Certificates as a private authority makes them: of the authority, of a server on the loopback, of a client; and
//! those of a stranger, which nobody trusts. Made anew by every test that needs some, so that none expires.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use tempfile::TempDir;

/// PEM files in a folder; gone when dropped.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

/// An authority.
struct Authority {
    certificate: Certificate,
    key: KeyPair,
}

impl Certificates {
    /// Makes `ca`, `server` and `client`, and `stranger-ca` and `stranger` (a client), each certificate as `NAME.pem`
    /// and its key as `NAME-key.pem`; and of servers that signed their own, `self-signed-ca`, which
    /// is an authority's, as
    /// `openssl req -x509` makes it, and `self-signed`, which is not.
    ///
    /// # Errors
    /// They cannot be made or written.
    pub fn new() -> Result<Self> {
        let made = Self {
            folder: tempfile::tempdir()?,
        };
        let ours = made.authority("ca")?;
        made.signed("server", &ours, ExtendedKeyUsagePurpose::ServerAuth)?;
        made.signed("client", &ours, ExtendedKeyUsagePurpose::ClientAuth)?;
        let theirs = made.authority("stranger-ca")?;
        made.signed("stranger", &theirs, ExtendedKeyUsagePurpose::ClientAuth)?;
        made.self_signed("self-signed-ca", IsCa::Ca(BasicConstraints::Unconstrained))?;
        made.self_signed("self-signed", IsCa::ExplicitNoCa)?;
        Ok(made)
    }

    /// A certificate's file.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pem"))
    }

    /// Its key's file.
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}-key.pem"))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn authority(&self, name: &str) -> Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key)?;
        std::fs::write(self.certificate(name), certificate.pem())?;
        Ok(Authority { certificate, key })
    }

    fn self_signed(&self, name: &str, is_ca: IsCa) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.is_ca = is_ca;
        params.distinguished_name.push(DnType::CommonName, name);
        std::fs::write(self.certificate(name), params.self_signed(&key)?.pem())?;
        std::fs::write(self.key(name), key.serialize_pem())?;
        Ok(())
    }

    fn signed(&self, name: &str, by: &Authority, usage: ExtendedKeyUsagePurpose) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        let certificate = params.signed_by(&key, &by.certificate, &by.key)?;
        std::fs::write(self.certificate(name), certificate.pem())?;
        std::fs::write(self.key(name), key.serialize_pem())?;
        Ok(())
    }
}
