//! `mesh demo echo`: servers that say who they are.
//!
//! One runtime per thread, each with its own listening socket (`SO_REUSEPORT`), so that a server is
//! never what a measurement measures. Serves, on addresses of its own each: HTTP/1.1 and HTTP/2
//! with prior knowledge (`service` lists the paths), TCP that sends back what it gets, and TCP
//! where the server speaks first.
//!
//! Absent on purpose: TLS, and any limit on what a client may ask for beyond the bounds below. It
//! is for test beds, not for a network that one does not trust.

mod body;
mod fast;
mod service;
mod tcp;

use std::{
    cell::Cell, io::Write as _, net::SocketAddr, rc::Rc, sync::Arc, thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::LocalSet,
};

use service::Identity;
pub use service::{NAME_HEADER, VERSION_HEADER};

/// Most open connections per thread and listener: a test bed with 2,000 idle connections fits ten
/// times, a leak does not go on for ever.
const CONNECTIONS_MAX: usize = 20_000;

/// The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Arguments of `mesh demo echo`.
#[derive(clap::Args, Clone, Debug)]
pub struct EchoArgs {
    /// Serve HTTP/1.1 and HTTP/2 (prior knowledge) here; port 0: any free one.
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Vec<SocketAddr>,
    /// Send back what comes, here.
    #[arg(long, value_name = "ADDR:PORT")]
    pub tcp: Vec<SocketAddr>,
    /// Greet first, then send back what comes, here.
    #[arg(long, value_name = "ADDR:PORT")]
    pub server_first: Vec<SocketAddr>,
    /// Name that it answers with (header `x-echo-name`).
    #[arg(long, default_value = "echo")]
    pub name: String,
    /// Version that it answers with (header `x-echo-version`).
    #[arg(long, default_value = "v1")]
    pub version: String,
    /// Threads, each with its own sockets.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: u16,
    /// HTTP/1.1 only, one fixed answer and /bytes/N, as cheap as can be: for measurements.
    #[arg(long)]
    pub fast: bool,
}

/// Servers that run in the background until this is dropped.
#[derive(Debug)]
pub struct Echo {
    /// Where HTTP is served, in the order of the arguments.
    pub http: Vec<SocketAddr>,
    /// Where TCP is echoed.
    pub tcp: Vec<SocketAddr>,
    /// Where the server speaks first.
    pub server_first: Vec<SocketAddr>,
    stop: watch::Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug)]
enum Speech {
    Http,
    Fast,
    Tcp,
    ServerFirst,
}

/// Serves until the process ends. Prints one line with the addresses when all of them are open:
/// `listening http=127.0.0.1:8080 tcp=...`.
///
/// # Errors
/// No address was given, one can't be opened, or a name is no header value.
pub fn run_echo(args: &EchoArgs) -> Result<()> {
    let mut echo = Echo::start(args)?;
    let mut line = "listening".to_owned();
    for (kind, addresses) in [
        ("http", &echo.http),
        ("tcp", &echo.tcp),
        ("server-first", &echo.server_first),
    ] {
        for address in addresses {
            line.push_str(&format!(" {kind}={address}"));
        }
    }
    // A reader that went away is no reason to stop serving.
    let _ = writeln!(std::io::stdout(), "{line}");
    for thread in echo.threads.drain(..) {
        if thread.join().is_err() {
            bail!("a server thread panicked");
        }
    }
    Ok(())
}

impl Echo {
    /// Opens all addresses, then serves them on threads of its own.
    ///
    /// # Errors
    /// No address was given, one can't be opened, or a name is no header value.
    pub fn start(args: &EchoArgs) -> Result<Self> {
        let identity = Arc::new(Identity::new(&args.name, &args.version)?);
        let http = if args.fast {
            Speech::Fast
        } else {
            Speech::Http
        };
        let (stop, stopped) = watch::channel(());
        let mut echo = Self {
            http: Vec::new(),
            tcp: Vec::new(),
            server_first: Vec::new(),
            stop,
            threads: Vec::new(),
        };
        let mut per_thread: Vec<Vec<(std::net::TcpListener, Speech)>> =
            (0..args.threads).map(|_| Vec::new()).collect();
        for (addresses, speech, bound) in [
            (&args.http, http, &mut echo.http),
            (&args.tcp, Speech::Tcp, &mut echo.tcp),
            (
                &args.server_first,
                Speech::ServerFirst,
                &mut echo.server_first,
            ),
        ] {
            for address in addresses {
                let mut address = *address;
                for listeners in &mut per_thread {
                    let listener = listen(address)?;
                    // With port 0 the first socket chooses for all threads.
                    address = listener.local_addr()?;
                    listeners.push((listener, speech));
                }
                bound.push(address);
            }
        }
        if per_thread.iter().all(Vec::is_empty) {
            bail!("nothing to serve: give --http, --tcp or --server-first an address");
        }
        for listeners in per_thread {
            let (identity, stopped) = (Arc::clone(&identity), stopped.clone());
            let thread = std::thread::Builder::new().name("echo".into());
            echo.threads
                .push(thread.spawn(move || serve(listeners, &identity, stopped))?);
        }
        Ok(echo)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.send_replace(());
        for thread in self.threads.drain(..) {
            // A panic has been printed already, and Drop must not add another.
            let _ = thread.join();
        }
    }
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let open = || -> std::io::Result<_> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().with_context(|| format!("can't listen on {address}"))
}

/// One thread's servers.
fn serve(
    listeners: Vec<(std::net::TcpListener, Speech)>,
    identity: &Arc<Identity>,
    mut stopped: watch::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a thread has the descriptors for a runtime");
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        for (listener, speech) in listeners {
            let listener = TcpListener::from_std(listener).expect("it is non-blocking");
            let identity = Arc::clone(identity);
            tokio::task::spawn_local(accept(listener, speech, identity));
        }
        // An error says that the sender is gone: also a reason to stop.
        let _ = stopped.changed().await;
    });
}

async fn accept(listener: TcpListener, speech: Speech, identity: Arc<Identity>) {
    let open = Rc::new(Cell::new(0_usize));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                // 10 ms, not 0: at descriptor exhaustion an immediate retry spins.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        if open.get() >= CONNECTIONS_MAX {
            continue;
        }
        let _ = stream.set_nodelay(true);
        let counted = Counted::new(&open);
        let identity = Arc::clone(&identity);
        tokio::task::spawn_local(async move {
            speak(stream, peer, speech, &identity).await;
            drop(counted);
        });
    }
}

async fn speak(stream: TcpStream, peer: SocketAddr, speech: Speech, identity: &Arc<Identity>) {
    match speech {
        Speech::Http => service::serve(stream, peer, identity).await,
        Speech::Fast => fast::serve(stream, identity).await,
        Speech::Tcp => tcp::serve(stream, None).await,
        Speech::ServerFirst => tcp::serve(stream, Some(identity.greeting())).await,
    }
}

/// Counts an open connection until it is dropped.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
pub(in crate::demo) mod tests;
