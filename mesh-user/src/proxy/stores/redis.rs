//! A Redis server as a store: one script, atomic there, by the server's clock.

use std::{rc::Rc, sync::Arc, sync::LazyLock, time::Duration};

use redis::{
    AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisResult, Script, ServerErrorKind,
    aio::MultiplexedConnection,
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use super::link::{Error, Link};
use crate::{
    model::limit::{RedisStore, StoreAddress},
    policy::rate_limit::{Bucket, Grant},
};

/// A bucket by the generic cell rate algorithm, as those of this node: the key holds the time at
/// which it is full again, in microseconds since a moment near to now, so that a double is exact to
/// a hundredth of one. Gives as many tokens as there are, up to what is wanted.
const CODE: &str = "local time = redis.call('TIME')
local now = (time[1] - 1700000000) * 1000000 + time[2]
local token = ARGV[1] / ARGV[2]
local full = token * ARGV[3]
local wanted = tonumber(ARGV[4])
local at = redis.call('GET', KEYS[1])
if at then
  at = tonumber(at)
  if not at then return redis.error_reply('ERR the key holds something else') end
end
if not at or at < now then at = now end
if at > now + full then at = now + full end
local there = math.max(0, math.floor((full - (at - now)) / token + 0.001))
local given = math.min(wanted, there)
if given > 0 then
  at = at + given * token
  redis.call('SET', KEYS[1], string.format('%.17g', at), 'PX', math.ceil((at - now) / 1000) + 1000)
end
local wait = 0
if at > now then wait = math.max(0, at + token - now - full) end
if there > given then wait = 0 end
return {given, there - given, math.ceil(wait)}";

/// [`CODE`], with its hash.
static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(CODE));

/// A connection to one server.
pub(super) struct Redis {
    address: StoreAddress,
    store: RedisStore,
    link: Rc<Link<MultiplexedConnection>>,
}

impl Redis {
    pub(super) fn new(address: StoreAddress, store: RedisStore) -> Rc<Self> {
        Rc::new(Self {
            address,
            store,
            link: Link::new(),
        })
    }

    pub(super) fn reset(&self) {
        self.link.reset();
    }

    /// Takes tokens of a key's bucket.
    pub(super) async fn take(
        self: &Rc<Self>,
        key: &str,
        bucket: Bucket,
        wanted: u64,
    ) -> Result<Grant, Error> {
        let own = Rc::clone(self);
        let mut connection = self.link.get(|| async move { own.connect().await }).await?;
        let asked = invoke(&mut connection, key, bucket, wanted).await;
        let (given, left, wait_us) = asked.inspect_err(|error| {
            if error.is_io_error() || error.is_connection_dropped() {
                self.link.reset();
            }
        })?;
        if given > wanted {
            return Err("more tokens than were wanted".into());
        }
        Ok(Grant {
            wanted,
            given,
            left,
            wait: Duration::from_micros(wait_us),
        })
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let mut info = RedisConnectionInfo::default().set_db(i64::from(self.store.database));
        if let Some(user) = &self.store.username {
            info = info.set_username(user);
        }
        if let Some(path) = &self.store.password_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?;
            info = info.set_password(text.lines().next().unwrap_or_default());
        }
        match &self.address {
            StoreAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                match &self.store.tls {
                    None => greet(&info, stream).await,
                    Some(name) => {
                        let name = ServerName::try_from(name.clone())?;
                        let tls = TlsConnector::from(tls()?);
                        greet(&info, tls.connect(name, stream).await?).await
                    }
                }
            }
            StoreAddress::Unix(path) => greet(&info, UnixStream::connect(path).await?).await,
        }
    }
}

async fn greet<S>(info: &RedisConnectionInfo, stream: S) -> Result<MultiplexedConnection, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Time is kept by who asks.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let (connection, driver) = MultiplexedConnection::new_with_config(info, stream, config).await?;
    tokio::task::spawn_local(driver);
    Ok(connection)
}

/// By the script's hash; a server that does not know it gets the script itself.
async fn invoke(
    connection: &mut MultiplexedConnection,
    key: &str,
    bucket: Bucket,
    wanted: u64,
) -> RedisResult<(u64, u64, u64)> {
    let Bucket {
        requests,
        per,
        burst,
    } = bucket;
    let command = |name: &str, script: &str| {
        let mut command = redis::cmd(name);
        let per_us = u64::try_from(per.as_micros()).unwrap_or(u64::MAX);
        command.arg(script).arg(1).arg(key);
        command.arg(per_us).arg(requests).arg(burst).arg(wanted);
        command
    };
    let known = command("EVALSHA", SCRIPT.get_hash());
    match known.query_async(connection).await {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            let whole = command("EVAL", CODE);
            whole.query_async(connection).await
        }
        answer => answer,
    }
}

/// The system's certificates, read once.
fn tls() -> Result<Arc<ClientConfig>, Error> {
    static CONFIG: LazyLock<Result<Arc<ClientConfig>, String>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("the system has no certificates".to_owned());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::new(config))
    });
    CONFIG.clone().map_err(Into::into)
}
