//! PEM files: read as a whole, checked, and told by name when they can't be used.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use crate::model::tls::CertificateFiles;

/// Largest file: a bundle of all public CAs has some 220 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// A file that was written so shortly before it was looked at may change again within the same
/// tick of its time stamp.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// Why files can't be used. Its first word is its name.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("unreadable: {}: {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("no-certificate: {} has no PEM block CERTIFICATE", .0.display())]
    NoCertificate(PathBuf),
    #[error("no-key: {} has no PEM block of a private key", .0.display())]
    NoKey(PathBuf),
    #[error("bad-pem: {}: {error}", .path.display())]
    BadPem { path: PathBuf, error: String },
    #[error("key-mismatch: {} is not the key of {}: {error}", .key.display(), .cert.display())]
    KeyMismatch {
        cert: PathBuf,
        key: PathBuf,
        error: rustls::Error,
    },
    #[error("bad-ca: {}: {error}", .path.display())]
    BadCa { path: PathBuf, error: String },
    #[error("bad-name: {0:?} is neither a name nor an address")]
    BadName(String),
    #[error("no-system-roots: {0}")]
    NoSystemRoots(String),
    #[error("bad-settings: {0}")]
    BadSettings(String),
}

/// What files are, or why not, at one moment. No `Debug`: some hold keys.
pub(super) struct Contents(Vec<(PathBuf, io::Result<Vec<u8>>)>);

impl Contents {
    pub(super) fn read(paths: &[PathBuf]) -> Self {
        let each = paths.iter().map(|path| (path.clone(), read(path)));
        Self(each.collect())
    }

    /// Differs whenever the files do.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (_, content) in &self.0 {
            match content {
                Ok(bytes) => bytes.hash(&mut hasher),
                Err(error) => error.to_string().hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    fn get(&self, path: &Path) -> Result<&[u8], Fault> {
        let unreadable = |error| Fault::Unreadable {
            path: path.to_owned(),
            error,
        };
        match self.0.iter().find(|(known, _)| known == path) {
            Some((_, Ok(bytes))) => Ok(bytes),
            Some((_, Err(error))) => {
                Err(unreadable(io::Error::new(error.kind(), error.to_string())))
            }
            None => Err(unreadable(io::ErrorKind::NotFound.into())),
        }
    }
}

/// A regular file of a bounded size. Nothing that blocks.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("larger than 4 MiB"));
    }
    Ok(bytes)
}

/// What tells cheaply that files are what they were. None: look inside.
pub(super) fn stamp(paths: &[PathBuf], now: SystemTime) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    for path in paths {
        let meta = fs::metadata(path).ok()?;
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(
                u64::try_from(meta.ctime()).ok()?,
                u32::try_from(meta.ctime_nsec()).ok()?,
            );
        if now
            .duration_since(changed)
            .is_ok_and(|age| age < SETTLED_AFTER)
        {
            return None;
        }
        let all = (
            meta.dev(),
            meta.ino(),
            meta.size(),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        );
        all.hash(&mut hasher);
    }
    Some(hasher.finish())
}

fn certificates(path: &Path, contents: &Contents) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(contents.get(path)?).collect();
    let chain = chain.map_err(|error| Fault::BadPem {
        path: path.to_owned(),
        error: error.to_string(),
    })?;
    if chain.is_empty() {
        return Err(Fault::NoCertificate(path.to_owned()));
    }
    Ok(chain)
}

/// A chain with its key, which must belong together.
pub(super) fn certified(
    files: &CertificateFiles,
    contents: &Contents,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Fault> {
    use rustls::pki_types::pem::Error;

    let chain = certificates(&files.cert, contents)?;
    let key = match PrivateKeyDer::from_pem_slice(contents.get(&files.key)?) {
        Ok(key) => key,
        Err(Error::NoItemsFound) => return Err(Fault::NoKey(files.key.clone())),
        // Never with its content: it holds a key.
        Err(_) => {
            return Err(Fault::BadPem {
                path: files.key.clone(),
                error: "not a private key in PEM".to_owned(),
            });
        }
    };
    CertifiedKey::from_der(chain, key, provider).map_err(|error| Fault::KeyMismatch {
        cert: files.cert.clone(),
        key: files.key.clone(),
        error,
    })
}

/// The CAs of a file: every one of them must be good.
pub(super) fn roots(path: &Path, contents: &Contents) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, contents)? {
        roots.add(certificate).map_err(|error| Fault::BadCa {
            path: path.to_owned(),
            error: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// The system's CAs, as they were when they were first needed. Those that rustls can't read are
/// left out: bundles have some.
pub(super) fn system_roots() -> Result<Arc<RootCertStore>, Fault> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(Arc::clone(roots));
    }
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    if roots.is_empty() {
        let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        return Err(Fault::NoSystemRoots(errors.join("; ")));
    }
    Ok(Arc::clone(ROOTS.get_or_init(|| Arc::new(roots))))
}

#[cfg(test)]
mod tests;
