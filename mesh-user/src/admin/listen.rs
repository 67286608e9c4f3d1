//! Where the admin interface listens: a socket that only its owner reaches, and a TCP port.

use std::{
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    io::{self, Read as _},
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::AdminError;

/// The instance's run-time directory, locked as long as this lives.
///
/// The lock, not the socket's file, says that an agent lives: the kernel releases it with the
/// process, so a socket that a killed agent left is known to be dead and replaced.
#[derive(Debug)]
pub(super) struct Place {
    socket: PathBuf,
    /// Of our own socket: a successor's stands at the same path.
    inode: u64,
    lock: File,
}

impl Place {
    /// Makes the directory (0700), takes the lock, binds the socket (0600).
    pub(super) fn take(
        instance: &str,
        run_dir: &Path,
        socket: &Path,
    ) -> Result<(Self, UnixListener), AdminError> {
        let at = |what, path: &Path| {
            let path = path.to_owned();
            move |source| AdminError::Socket { what, path, source }
        };
        if let Some(parent) = run_dir.parent() {
            fs::create_dir_all(parent).map_err(at("make the directory", parent))?;
        }
        match DirBuilder::new().mode(0o700).create(run_dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(at("make the directory", run_dir))?,
        }
        fs::set_permissions(run_dir, Permissions::from_mode(0o700))
            .map_err(at("set the mode of", run_dir))?;

        let lock = lock(instance, &run_dir.join("agent.lock"))?;
        match fs::remove_file(socket) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(at("replace the dead socket", socket))?,
        }
        Self::bind(lock, socket)
    }

    /// Puts an own socket in the place of a predecessor's, in one step. `lock` is what it handed
    /// over.
    pub(super) fn take_over(lock: File, socket: &Path) -> Result<(Self, UnixListener), AdminError> {
        let fresh = socket.with_extension(format!("{}.new", std::process::id()));
        let at = |what| {
            let path = fresh.clone();
            move |source| AdminError::Socket { what, path, source }
        };
        // What a killed one with our number left.
        let _none = fs::remove_file(&fresh);
        let (mut place, listener) = Self::bind(lock, &fresh)?;
        fs::rename(&fresh, socket).map_err(at("put in its place"))?;
        place.socket = socket.to_owned();
        // Only to say who: the lock is held.
        let _unsigned = sign(&place.lock);
        Ok((place, listener))
    }

    fn bind(lock: File, socket: &Path) -> Result<(Self, UnixListener), AdminError> {
        let at = |what| {
            let path = socket.to_owned();
            move |source| AdminError::Socket { what, path, source }
        };
        let listener = UnixListener::bind(socket).map_err(at("listen on"))?;
        // From here on the socket is removed again when something fails.
        let place = Self {
            socket: socket.to_owned(),
            inode: fs::metadata(socket).map_err(at("look at"))?.ino(),
            lock,
        };
        // The directory kept everybody out between bind and this.
        fs::set_permissions(socket, Permissions::from_mode(0o600))
            .map_err(at("set the mode of"))?;
        listener.set_nonblocking(true).map_err(at("listen on"))?;
        Ok((place, listener))
    }

    /// A descriptor of the lock, for a successor.
    pub(super) fn share_lock(&self) -> io::Result<File> {
        self.lock.try_clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The lock's file stays: removing it would let two agents lock two different files.
        if fs::metadata(&self.socket).is_ok_and(|now| now.ino() == self.inode) {
            let _ = fs::remove_file(&self.socket);
        }
    }
}

fn lock(instance: &str, path: &Path) -> Result<File, AdminError> {
    let at = |source| AdminError::Socket {
        what: "lock",
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(at)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // A holder that has not written its number yet is named without it.
            let _ = (&file).take(16).read_to_string(&mut pid);
            let pid = pid.trim().parse().ok();
            return Err(AdminError::Held {
                instance: instance.to_owned(),
                pid,
            });
        }
        Err(TryLockError::Error(error)) => return Err(at(error)),
    }
    sign(&file).map_err(at)?;
    Ok(file)
}

/// Writes the holder's number into the lock's file. Not through the cursor, which is shared with
/// whom the lock is shared.
fn sign(file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
}

/// Listens on the metrics port, with SO_REUSEPORT, so that the next agent can take over without
/// a gap. `beside`: a predecessor listens there, and lets go of it when we are ready.
pub(super) fn metrics(
    address: SocketAddr,
    beside: bool,
) -> Result<std::net::TcpListener, AdminError> {
    let bind = |reuse_port: bool| -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let named = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => AdminError::PortTaken { address },
        _ => AdminError::Port { address, source },
    };
    // Among sockets with SO_REUSEPORT the second bind succeeds too, and two instances would share
    // the scrapes at random. The instance's lock rules a predecessor out, so whoever answers is a
    // stranger: a first bind without the option finds out, and is gone when the second is made.
    if !beside {
        drop(bind(false).map_err(named)?);
    }
    let socket = bind(true).map_err(named)?;
    let listen = |socket: &Socket| {
        socket.set_nonblocking(true)?;
        socket.listen(128)
    };
    listen(&socket).map_err(named)?;
    Ok(socket.into())
}
