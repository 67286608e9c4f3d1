//! mesh's proxy without the kernel's part: the very same workers behind a listener that is dialled.
//!
//! What the intercepted path costs beyond this one is what interception costs.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU32},
};

use anyhow::{Context as _, Result};
use mesh_user::{
    clock, config,
    policy::Snapshot,
    proxy::{
        wire::{OriginLookup, SocketSource, WorkloadHandle},
        worker::{Command, Workers, WorkersOptions},
    },
    telemetry::Telemetry,
};
use socket2::{Domain, Protocol, Socket, Type};

#[derive(clap::Args)]
pub(crate) struct PlainArgs {
    /// The configuration; a service must have the address that is listened on.
    #[arg(long)]
    config: PathBuf,
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// The workload that is served, NAMESPACE/NAME.
    #[arg(long)]
    workload: String,
}

/// Sockets of the own namespace.
#[derive(Debug)]
struct Here;

impl SocketSource for Here {
    fn tcp_socket(&self, towards: SocketAddr) -> io::Result<OwnedFd> {
        let socket = tcp(towards)?;
        Ok(socket.into())
    }
}

/// The accepted socket's own address is the destination: nobody is asked.
#[derive(Debug)]
struct Nobody;

impl OriginLookup for Nobody {
    fn asked(&self, _: u32, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        None
    }
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Serves until the process is killed.
pub(crate) fn run(args: &PlainArgs) -> Result<()> {
    let config = config::load(&args.config).map_err(|error| anyhow::anyhow!("{error}"))?;
    let snapshot = Snapshot::compile(Arc::new(config.model), None, clock::now());
    let options = WorkersOptions {
        workers: 1,
        pin: false,
        limits: config.agent.limits,
        origins: Arc::new(Nobody),
        node_sockets: Arc::new(Here),
        telemetry: Telemetry::new(&config.agent.access_log)?,
    };
    let workers = Workers::start(options, Arc::new(snapshot))?;
    let socket = tcp(args.listen)?;
    socket.set_reuse_address(true)?;
    socket
        .bind(&args.listen.into())
        .with_context(|| format!("can't bind {}", args.listen))?;
    socket.listen(4096)?;
    let workload = Arc::new(WorkloadHandle {
        pod_id: 1,
        key: args.workload.as_str().into(),
        sockets: Arc::new(Here),
        connections: AtomicU32::new(0),
    });
    workers.send(
        0,
        Command::Listen {
            workload,
            listener: socket.into(),
        },
    );
    loop {
        std::thread::park();
    }
}
