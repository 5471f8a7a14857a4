//! Owns the control plane's keys and certificates: an authority, the API server's certificate, the
//! key that signs service accounts' tokens.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The files of one control plane's keys.
#[derive(Debug)]
pub struct Pki {
    /// The authority's certificate, which clients trust.
    pub ca: PathBuf,
    /// The API server's certificate.
    pub serving_cert: PathBuf,
    /// The API server's key.
    pub serving_key: PathBuf,
    /// The key that signs service accounts' tokens.
    pub accounts_key: PathBuf,
    /// The public half, which checks them.
    pub accounts_public: PathBuf,
}

impl Pki {
    /// Makes new keys under `dir` for an API server reached by any of `names` (addresses or DNS
    /// names).
    pub fn create(dir: &Path, names: &[String]) -> Result<Self> {
        let pki = Self {
            ca: dir.join("ca.crt"),
            serving_cert: dir.join("apiserver.crt"),
            serving_key: dir.join("apiserver.key"),
            accounts_key: dir.join("service-accounts.key"),
            accounts_public: dir.join("service-accounts.pub"),
        };
        let authority_key = KeyPair::generate().context("generate the authority's key")?;
        let authority = authority_params().context("describe the authority")?;
        let certificate = authority
            .self_signed(&authority_key)
            .context("sign the authority's certificate")?;
        let serving_key = KeyPair::generate().context("generate the API server's key")?;
        let serving = serving_params(names)
            .and_then(|params| {
                params.signed_by(
                    &serving_key,
                    &Issuer::from_params(&authority, &authority_key),
                )
            })
            .context("sign the API server's certificate")?;
        let accounts_key = KeyPair::generate().context("generate the service accounts' key")?;
        write(&pki.ca, &certificate.pem())?;
        write(&pki.serving_cert, &serving.pem())?;
        write(&pki.serving_key, &serving_key.serialize_pem())?;
        write(&pki.accounts_key, &accounts_key.serialize_pem())?;
        write(&pki.accounts_public, &accounts_key.public_key_pem())?;
        Ok(pki)
    }
}

fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "lab authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(params)
}

fn serving_params(names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
