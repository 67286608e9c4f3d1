//! Memory under readers that have stopped (pitfall 25): the agent holds at most 64 KiB for each
//! stream, whatever is offered to it. One test at a time: the figures are the process's.

mod proxy_support;

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mesh_user::model::Protocol;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proxy_support::*;
use socket2::SockRef;

/// What a stalled stream may cost in user space.
const STALLED_BYTES_MAX: usize = 64 << 10;
const COUNT: usize = 32;
/// Nothing moves for so long: then it stalls.
const QUIET: Duration = Duration::from_millis(60);

/// The other tests of this file wait: threads of theirs would be measured, too.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_room(stream: &TcpStream, within: Duration) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::try_from(within).unwrap()).unwrap() > 0
}

/// Writes until nothing is taken for a while; how much it was.
fn fill(stream: &TcpStream) -> usize {
    SockRef::from(stream)
        .set_send_buffer_size(64 << 10)
        .unwrap();
    stream.set_nonblocking(true).unwrap();
    let (mut sent, block) = (0, [b'7'; 64 << 10]);
    loop {
        match (&*stream).write(&block) {
            Ok(count) => sent += count,
            Err(_) if !has_room(stream, QUIET) => return sent,
            Err(_) => {}
        }
    }
}

/// How much memory each of `COUNT` costs; one more comes first, so that stores and arenas are
/// filled.
fn each<T>(mut stall: impl FnMut() -> T) -> usize {
    let _warm = stall();
    let before = resident();
    let _stalled: Vec<_> = (0..COUNT).map(|_| stall()).collect();
    resident().saturating_sub(before) / COUNT
}

fn assert_small(what: &str, each: usize) {
    println!("{what}: {each} bytes of user space for a stalled stream");
    assert!(each <= STALLED_BYTES_MAX, "{what}: {each} bytes");
}

/// Pipes that this process has.
fn pipes() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let ends = links.filter(|to| to.to_string_lossy().starts_with("pipe:"));
    ends.count() / 2
}

/// A client's end and an endpoint's; turned round when asked.
fn through(mesh: &Mesh, listener: &TcpListener, swapped: bool) -> (TcpStream, TcpStream) {
    let client = mesh.connect();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    if swapped {
        (server, client)
    } else {
        (client, server)
    }
}

#[test]
fn stalled_opaque_streams_hold_at_most_64_kib_each() {
    let _alone = alone();
    for swapped in [false, true] {
        let (listener, address) = bind();
        let mesh = Mesh::start(Plan::new(Protocol::Tcp).endpoint(address, "v1"));
        let before = pipes();
        let mut most = 0;
        let bytes = each(|| {
            let (writer, stopped) = through(&mesh, &listener, swapped);
            assert!(fill(&writer) > 64 << 10);
            most = most.max(pipes() - before);
            (writer, stopped)
        });
        assert_small("tcp", bytes);
        // One for each that stalls, and those that are kept; a pipe has room for 64 KiB.
        assert!(most <= COUNT + 1 + 16, "{most} pipes");
        println!("tcp: {most} pipes of 64 KiB at most, in the kernel");
        // Nothing of it stays.
        drop(mesh);
        eventually("the pipes are closed", || pipes() == before);
    }
}

/// A gibibyte is offered, and the reader goes on at last.
#[test]
fn gibibyte_offered_to_a_stopped_reader_waits_at_its_sender() {
    const BLOCK: usize = (1 << 20) + 7;
    const BLOCKS: u64 = 1024;
    let _alone = alone();
    for swapped in [false, true] {
        let (listener, address) = bind();
        let mesh = Mesh::start(Plan::new(Protocol::Tcp).endpoint(address, "v1"));
        let (mut writer, mut reader) = through(&mesh, &listener, swapped);
        writer.set_write_timeout(None).unwrap();
        let probe = writer.try_clone().unwrap();
        let mut got = vec![0_u8; BLOCK];
        let before = resident();
        let sender = thread::spawn(move || {
            let mut block = vec![7; BLOCK];
            for count in 0..BLOCKS {
                block[..8].copy_from_slice(&count.to_le_bytes());
                writer.write_all(&block).unwrap();
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut quiet = None;
        eventually("the sender is stuck", || {
            if has_room(&probe, Duration::ZERO) {
                quiet = None;
            }
            quiet.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(500)
        });
        let grown = resident().saturating_sub(before);
        println!("{grown} bytes while 1 GiB is offered, the sender's own block of 1 MiB included");
        assert!(!sender.is_finished());
        assert!(grown < BLOCK + (1 << 20), "{grown} bytes");
        for count in 0..BLOCKS {
            reader.read_exact(&mut got).unwrap();
            assert_eq!(got[..8], count.to_le_bytes());
            assert!(got[8..].iter().step_by(4093).all(|byte| *byte == 7));
        }
        assert_eq!(reader.read(&mut got).unwrap(), 0);
        sender.join().unwrap();
    }
}

fn http1() -> (Mesh, TcpListener) {
    let (listener, address) = bind();
    let mesh = Mesh::start(Plan::new(Protocol::Http).endpoint(address, "v1"));
    (mesh, listener)
}

#[test]
fn stalled_http1_uploads_hold_at_most_64_kib_each() {
    for framing in ["content-length: 1073741824", "transfer-encoding: chunked"] {
        let _alone = alone();
        let (mesh, listener) = http1();
        let bytes = each(|| {
            let mut client = mesh.connect();
            write!(client, "POST / HTTP/1.1\r\nhost: web\r\n{framing}\r\n\r\n").unwrap();
            if framing.contains("chunked") {
                client.write_all(b"40000000\r\n").unwrap();
            }
            let stopped = listener.accept().unwrap();
            assert!(fill(&client) > 64 << 10);
            (client, stopped)
        });
        assert_small("http/1 upload", bytes);
    }
}

#[test]
fn stalled_http1_downloads_hold_at_most_64_kib_each() {
    for framing in ["content-length: 1073741824", "transfer-encoding: chunked"] {
        let _alone = alone();
        let (mesh, listener) = http1();
        let bytes = each(|| {
            let mut client = mesh.connect();
            client.write_all(GET.as_bytes()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let mut server = Reader::new(server);
            server.head().unwrap();
            server.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n"));
            if framing.contains("chunked") {
                server.send("40000000\r\n");
            }
            assert!(fill(&server.stream) > 64 << 10);
            (client, server)
        });
        assert_small("http/1 download", bytes);
    }
}

/// Pieces that cost the sender no memory.
static PIECE: [u8; 16 << 10] = [7; 16 << 10];

/// Sends what the window lets through, until it lets nothing through for a while.
async fn pour(out: &mut h2::SendStream<Bytes>) -> usize {
    let mut sent = 0;
    loop {
        out.reserve_capacity(PIECE.len());
        let room = poll_fn(|cx| out.poll_capacity(cx));
        match tokio::time::timeout(QUIET, room).await {
            Ok(Some(Ok(room))) => {
                let piece = &PIECE[..room.min(PIECE.len())];
                out.send_data(Bytes::from_static(piece), false).unwrap();
                sent += piece.len();
            }
            _ => return sent,
        }
    }
}

/// An endpoint that answers at once, gives no window for bodies, and pours into its answers when
/// asked.
fn h2_endpoint(pours: bool) -> SocketAddr {
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut builder = h2::server::Builder::new();
                    builder.initial_window_size(0);
                    let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let mut out = respond
                            .send_response(http::Response::new(()), false)
                            .unwrap();
                        tokio::spawn(async move {
                            if pours {
                                pour(&mut out).await;
                            }
                            let _held = (request, out);
                            std::future::pending::<()>().await;
                        });
                    }
                });
            }
        });
    });
    address
}

fn stalled_http2(pours: bool) -> usize {
    let _alone = alone();
    let mesh = Mesh::start(Plan::new(Protocol::Http2).endpoint(h2_endpoint(pours), "v1"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let mut held = Vec::new();
        let mut before = 0;
        // The first eight fill the stores.
        for index in 0..COUNT + 8 {
            if index == 8 {
                before = resident();
            }
            let request = http::Request::post("http://web/").body(()).unwrap();
            let (response, mut out) = sender.send_request(request, false).unwrap();
            let response = response.await.unwrap();
            if pours {
                tokio::time::sleep(QUIET * 2).await;
            } else {
                assert!(pour(&mut out).await >= 32 << 10);
            }
            held.push((response, out));
        }
        resident().saturating_sub(before) / COUNT
    })
}

#[test]
fn stalled_http2_uploads_hold_at_most_64_kib_each() {
    assert_small("http/2 upload", stalled_http2(false));
}

#[test]
fn stalled_http2_downloads_hold_at_most_64_kib_each() {
    assert_small("http/2 download", stalled_http2(true));
}
