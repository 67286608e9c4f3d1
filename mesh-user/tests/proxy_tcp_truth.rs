//! TCP truthfulness of opaque connections: what two peers see of one another through the proxy is
//! what they would see without it.
//!
//! Nothing here is accelerated by a sockmap (pitfalls 22 to 24 are about it): bytes are copied, or
//! go through a pipe.

mod proxy_support;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_user::{
    model::{Protocol, TimeoutPolicy},
    proxy::{Command, wire::SocketSource},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proxy_support::*;
use socket2::SockRef;

/// Longest that a reset may take from side to side.
const RESET_MAX: Duration = Duration::from_millis(50);

/// A tcp service whose only endpoint is the returned listener.
fn opaque() -> (Mesh, TcpListener) {
    opaque_with_idle(None)
}

fn opaque_with_idle(idle: Option<Duration>) -> (Mesh, TcpListener) {
    let (listener, address) = bind();
    let plan = Plan::new(Protocol::Tcp).endpoint(address, "v1");
    let plan = plan.policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            idle,
            ..TimeoutPolicy::default()
        };
    });
    (Mesh::start(plan), listener)
}

/// A client, and the connection that the endpoint got for it.
fn through(mesh: &Mesh, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = mesh.connect();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_write_timeout(Some(PATIENCE)).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// The same, turned round when asked: every property holds both ways.
fn both_ways(mesh: &Mesh, listener: &TcpListener, swapped: bool) -> (TcpStream, TcpStream) {
    let (client, server) = through(mesh, listener);
    if swapped {
        (server, client)
    } else {
        (client, server)
    }
}

/// Writes until nothing is taken for a while; how much it was.
fn fill(stream: &TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (mut sent, block) = (0, [7; 64 << 10]);
    loop {
        match (&*stream).write(&block) {
            Ok(count) => sent += count,
            Err(_) if !is_ready(stream, PollFlags::POLLOUT, Duration::from_millis(300)) => break,
            Err(_) => {}
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

fn is_ready(stream: &TcpStream, flags: PollFlags, within: Duration) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), flags)];
    let within = PollTimeout::try_from(within).unwrap();
    poll(&mut fds, within).unwrap() > 0
}

/// How long a socket takes to be told of a reset, with nobody reading it.
fn time_to_reset(stream: &TcpStream) -> Duration {
    let start = Instant::now();
    // Errors are reported whatever is asked for.
    let broken = is_ready(stream, PollFlags::empty(), PATIENCE);
    let took = start.elapsed();
    assert!(broken, "no reset came");
    let error = stream.take_error().unwrap().expect("an error");
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
    took
}

/// The fastest of five: others may be slow because the machine is.
fn fastest(mut once: impl FnMut() -> Duration) -> Duration {
    (0..5).map(|_| once()).min().unwrap()
}

/// A stream of blocks of which each differs from the one before.
struct Blocks {
    block: Vec<u8>,
    count: u64,
}

impl Blocks {
    fn new(seed: u64) -> Self {
        let mut rng = mesh_user::policy::rng::Rng::new(seed);
        // No power of two: boundaries of pages and buffers fall everywhere.
        let block = (0..131_101).flat_map(|_| rng.next_u64().to_le_bytes());
        Self {
            block: block.collect(),
            count: 0,
        }
    }

    fn next(&mut self) -> &[u8] {
        self.count += 1;
        self.block[..8].copy_from_slice(&self.count.to_le_bytes());
        &self.block
    }
}

fn send_blocks(mut stream: &TcpStream, seed: u64, blocks: u64) -> u64 {
    let mut source = Blocks::new(seed);
    for _ in 0..blocks {
        stream.write_all(source.next()).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    blocks * source.block.len() as u64
}

fn expect_blocks(mut stream: &TcpStream, seed: u64, blocks: u64) {
    let mut source = Blocks::new(seed);
    let mut got = vec![0; source.block.len()];
    for block in 0..blocks {
        stream.read_exact(&mut got).unwrap();
        assert!(got == source.next(), "block {block} differs");
    }
    assert_eq!(stream.read(&mut got).unwrap(), 0, "the end");
}

/// The record of the only connection.
fn record(mesh: &Mesh) -> serde_json::Value {
    eventually("the record", || mesh.records("connection").len() == 1);
    mesh.records("connection").remove(0)
}

/// The numbers under `part` of a record, whatever their names.
fn has_number(record: &serde_json::Value, number: u64) -> bool {
    record
        .as_object()
        .unwrap()
        .values()
        .any(|value| value.as_u64() == Some(number) || value.as_str() == Some(&number.to_string()))
}

#[test]
fn gibibyte_each_way_arrives_unchanged_and_counted_to_the_byte() {
    const BLOCKS: u64 = 1024;
    let (mesh, listener) = opaque();
    let (client, server) = through(&mesh, &listener);
    let [forth, back] = thread::scope(|scope| {
        let forth = scope.spawn(|| send_blocks(&client, 1, BLOCKS));
        let back = scope.spawn(|| send_blocks(&server, 2, BLOCKS + 1));
        scope.spawn(|| expect_blocks(&server, 1, BLOCKS));
        expect_blocks(&client, 2, BLOCKS + 1);
        [forth.join().unwrap(), back.join().unwrap()]
    });
    assert!(forth >= 1 << 30);
    let record = record(&mesh);
    assert!(
        has_number(&record, forth) && has_number(&record, back),
        "{record}"
    );
}

#[test]
fn reset_while_its_bytes_wait_for_the_other_side_arrives_in_time() {
    for swapped in [false, true] {
        let (mesh, listener) = opaque();
        let took = fastest(|| {
            let (writer, stopped) = both_ways(&mesh, &listener, swapped);
            assert!(fill(&writer) > 64 << 10);
            reset(writer);
            time_to_reset(&stopped)
        });
        assert!(took <= RESET_MAX, "swapped {swapped}: {took:?}");
    }
}

#[test]
fn reset_by_the_side_that_does_not_read_arrives_in_time() {
    for swapped in [false, true] {
        let (mesh, listener) = opaque();
        let took = fastest(|| {
            let (writer, stopped) = both_ways(&mesh, &listener, swapped);
            assert!(fill(&writer) > 64 << 10);
            reset(stopped);
            time_to_reset(&writer)
        });
        assert!(took <= RESET_MAX, "swapped {swapped}: {took:?}");
    }
}

#[test]
fn reset_after_an_own_end_arrives_in_time() {
    for swapped in [false, true] {
        let (mesh, listener) = opaque();
        let took = fastest(|| {
            let (ends, listens) = both_ways(&mesh, &listener, swapped);
            ends.shutdown(Shutdown::Write).unwrap();
            let mut listens = Reader::new(listens);
            assert!(listens.is_closed());
            reset(ends);
            time_to_reset(&listens.stream)
        });
        assert!(took <= RESET_MAX, "swapped {swapped}: {took:?}");
    }
}

#[test]
fn reset_of_an_idle_connection_arrives_in_time() {
    for swapped in [false, true] {
        let (mesh, listener) = opaque();
        let took = fastest(|| {
            let (left, right) = both_ways(&mesh, &listener, swapped);
            reset(left);
            time_to_reset(&right)
        });
        assert!(took <= RESET_MAX, "swapped {swapped}: {took:?}");
    }
}

#[test]
fn endpoint_that_can_not_be_reached_is_a_reset_in_time() {
    // To a broadcast address no TCP connection is possible: ENETUNREACH, at once.
    let unreachable = SocketAddr::from(([255, 255, 255, 255], 80));
    for endpoint in [nobody(), unreachable] {
        let mesh = Mesh::start(Plan::new(Protocol::Tcp).endpoint(endpoint, "v1"));
        let took = fastest(|| {
            let client = mesh.connect();
            time_to_reset(&client)
        });
        assert!(took <= RESET_MAX, "{endpoint}: {took:?}");
    }
}

/// A listener whose queue is full: a SYN to it gets no answer.
fn deaf() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let (listener, address) = bind();
    SockRef::from(&listener).listen(0).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        waiting.push(stream);
        assert!(waiting.len() < 8, "the queue has no end");
    }
    (listener, address, waiting)
}

#[test]
fn client_that_resets_while_its_endpoint_is_dialled_ends_the_dial() {
    let (_listener, address, _waiting) = deaf();
    let plan = Plan::new(Protocol::Tcp).endpoint(address, "v1");
    let mesh = Mesh::start(plan.policy(|policy| {
        policy.timeouts.connect = Some(Duration::from_secs(60));
    }));
    let client = mesh.connect();
    eventually("the proxy dials", || {
        mesh.snapshot().versions.iter().any(|version| {
            let gauges = version.breaker.gauges();
            gauges.connections > 0
        })
    });
    reset(client);
    let record = record(&mesh);
    assert!(record.to_string().contains("downstream_closed"), "{record}");
    assert!(
        mesh.snapshot()
            .versions
            .iter()
            .all(|version| version.breaker.gauges().connections == 0),
        "its permits are back"
    );
}

/// Makes sockets late, and keeps a second handle on each.
#[derive(Debug, Default)]
struct Late {
    pause: Duration,
    made: Mutex<Vec<OwnedFd>>,
}

impl SocketSource for Late {
    fn tcp_socket(&self, towards: SocketAddr) -> std::io::Result<OwnedFd> {
        thread::sleep(self.pause);
        let socket = HereSockets.tcp_socket(towards)?;
        self.made.lock().unwrap().push(socket.try_clone()?);
        Ok(socket)
    }
}

#[test]
fn bytes_and_end_sent_before_the_dial_has_finished_are_delivered() {
    let (listener, address) = bind();
    let sockets = Arc::new(Late {
        pause: Duration::from_millis(100),
        ..Late::default()
    });
    let mesh = Mesh::with_sockets(Plan::new(Protocol::Tcp).endpoint(address, "v1"), sockets);
    let mut client = Reader::new(mesh.connect());
    client.send("early");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let (server, _) = listener.accept().unwrap();
    let mut server = Reader::new(server);
    assert_eq!(server.all(), b"early");
    server.send("late");
    drop(server);
    assert_eq!(client.all(), b"late");
}

#[test]
fn upstream_socket_has_no_delay_and_is_kept_alive() {
    let (listener, address) = bind();
    let sockets = Arc::new(Late::default());
    let plan = Plan::new(Protocol::Tcp).endpoint(address, "v1");
    let mesh = Mesh::with_sockets(plan, Arc::clone(&sockets) as Arc<dyn SocketSource>);
    let (mut client, mut server) = through(&mesh, &listener);
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let made = sockets.made.lock().unwrap();
    let socket = SockRef::from(&made[0]);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    // A peer that vanished is noticed within three minutes.
    let silence =
        socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
    assert!(socket.tcp_keepalive_time().unwrap() + silence <= Duration::from_secs(180));
}

/// Pitfall 23: half-close right behind the bytes loses none of them, 200 times.
#[test]
fn bytes_with_an_end_right_behind_them_arrive_whole() {
    const COUNT: usize = 200_000;
    let (mesh, listener) = opaque();
    let server = thread::spawn(move || {
        for _ in 0..200 {
            let (server, _) = listener.accept().unwrap();
            let mut server = Reader::new(server);
            let all = server.all();
            server.send(&all);
        }
    });
    let sent: Vec<u8> = (0..COUNT).map(|index| (index % 251) as u8).collect();
    for round in 0..200 {
        let mut client = Reader::new(mesh.connect());
        client.send(&sent);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert!(client.all() == sent, "round {round}");
    }
    server.join().unwrap();
}

/// Pitfall 22: bytes that are there before anybody accepts are not overlooked, 1,000 times; nor
/// when the client has closed by then (pitfall 24: nothing is moved between queues).
#[test]
fn bytes_sent_in_the_tick_of_the_connect_arrive() {
    let (mesh, listener) = opaque();
    let server = thread::spawn(move || {
        for _ in 0..1000 {
            let (server, _) = listener.accept().unwrap();
            assert_eq!(Reader::new(server).all(), b"at once");
        }
    });
    for _ in 0..1000 {
        let mut client = TcpStream::connect(mesh.address).unwrap();
        client.write_all(b"at once").unwrap();
        drop(client);
    }
    server.join().unwrap();
}

#[test]
fn both_sides_that_end_at_once_end_in_order() {
    let (mesh, listener) = opaque();
    for _ in 0..100 {
        let (client, server) = through(&mesh, &listener);
        thread::scope(|scope| {
            scope.spawn(|| client.shutdown(Shutdown::Write).unwrap());
            server.shutdown(Shutdown::Write).unwrap();
        });
        assert!(Reader::new(client).is_closed());
        assert!(Reader::new(server).is_closed());
    }
    eventually("the records", || mesh.records("connection").len() == 100);
    let log = mesh.records("connection");
    assert!(
        log.iter().all(|line| !line.to_string().contains("reset")),
        "{log:?}"
    );
}

#[test]
fn half_closed_connection_lives_as_long_as_the_idle_time_out_allows() {
    for swapped in [false, true] {
        // Zero: as long as the peers like.
        let (mesh, listener) = opaque_with_idle(Some(Duration::ZERO));
        let (ends, mut goes_on) = both_ways(&mesh, &listener, swapped);
        ends.shutdown(Shutdown::Write).unwrap();
        assert_eq!(goes_on.read(&mut [0]).unwrap(), 0);
        let mut ends = Reader::new(ends);
        for word in ["still", "here"] {
            let quiet = Duration::from_millis(400);
            assert!(!is_ready(&ends.stream, PollFlags::POLLIN, quiet));
            goes_on.write_all(word.as_bytes()).unwrap();
            assert_eq!(ends.bytes(word.len()), word.as_bytes());
        }
        drop(goes_on);
        assert!(ends.is_closed());

        let (mesh, listener) = opaque_with_idle(Some(Duration::from_millis(200)));
        let (ends, goes_on) = both_ways(&mesh, &listener, swapped);
        ends.shutdown(Shutdown::Write).unwrap();
        let start = Instant::now();
        assert!(Reader::new(ends).is_reset(), "a reset, not an end");
        assert!(start.elapsed() >= Duration::from_millis(150));
        drop(goes_on);
        let record = record(&mesh);
        assert!(record.to_string().contains("upstream_timeout"), "{record}");
    }
}

/// Without `SO_OOBINLINE` the urgent byte would be lost; with edge-triggered readiness and the usual
/// trust in short reads it would wait for the next segment.
#[test]
fn urgent_bytes_arrive_at_once_and_in_their_place() {
    for swapped in [false, true] {
        let (mesh, listener) = opaque();
        let (sender, receiver) = both_ways(&mesh, &listener, swapped);
        let mut receiver = Reader::new(receiver);
        let took = fastest(|| {
            for (sent, got) in [("!", "!"), ("ab!", "ab!"), ("c", "c"), ("?", "?")] {
                SockRef::from(&sender)
                    .send_out_of_band(sent.as_bytes())
                    .unwrap();
                let start = Instant::now();
                assert_eq!(receiver.bytes(got.len()), got.as_bytes());
                assert!(start.elapsed() < PATIENCE / 2, "{got} stalled");
            }
            let start = Instant::now();
            SockRef::from(&sender).send_out_of_band(b"xy!").unwrap();
            assert_eq!(receiver.bytes(3), b"xy!");
            start.elapsed()
        });
        assert!(took <= RESET_MAX, "{took:?}");
        // An end right behind it.
        SockRef::from(&sender).send_out_of_band(b"z!").unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receiver.all(), b"z!");
    }
}

/// A splice stops at an urgent mark, and says that nothing is there; with a FIN behind it, that the
/// stream has ended.
#[test]
fn urgent_bytes_within_a_spliced_stream_neither_stall_nor_cut_it() {
    for swapped in [false, true] {
        let (mesh, listener) = opaque();
        let (sender, receiver) = both_ways(&mesh, &listener, swapped);
        let block = Blocks::new(5).block;
        let want: Vec<u8> = (0..20).flat_map(|_| [&block[..], b"!"].concat()).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    (&sender).write_all(&block).unwrap();
                    SockRef::from(&sender).send_out_of_band(b"!").unwrap();
                }
                sender.shutdown(Shutdown::Write).unwrap();
            });
            let got = Reader::new(receiver).all();
            assert!(got == want, "{} of {} bytes", got.len(), want.len());
        });
    }
}

#[test]
fn single_bytes_without_an_answer_arrive_each_on_its_own() {
    for swapped in [false, true] {
        let (mesh, listener) = opaque();
        let (mut sender, mut receiver) = both_ways(&mesh, &listener, swapped);
        let mut times: Vec<_> = (0..=255_u8)
            .map(|index| {
                let start = Instant::now();
                sender.write_all(&[index]).unwrap();
                let mut byte = [0];
                receiver.read_exact(&mut byte).unwrap();
                assert_eq!(byte[0], index);
                start.elapsed()
            })
            .collect();
        times.sort();
        // Nagle's algorithm and delayed acknowledgements would cost 40 ms each.
        assert!(
            times[250] < Duration::from_millis(20),
            "{:?}",
            &times[240..]
        );
    }
}

/// A connection that is cut short says so: an end would tell the peers that all was well.
#[test]
fn released_workload_resets_both_sides_and_records_its_bytes() {
    let (mesh, listener) = opaque();
    let (mut client, mut server) = through(&mesh, &listener);
    client.write_all(b"to the server").unwrap();
    server.read_exact(&mut [0; 13]).unwrap();
    server.write_all(b"back").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    let workers = mesh.workers.as_ref().unwrap();
    workers.send(0, Command::Release { pod_id: 7 });
    assert!(Reader::new(client).is_reset(), "to the client");
    assert!(Reader::new(server).is_reset(), "to the endpoint");
    let record = record(&mesh);
    assert!(
        has_number(&record, 13) && has_number(&record, 4),
        "{record}"
    );
}

/// One worker serves all: a stream that never blocks must not keep it to itself.
#[test]
fn short_exchange_beside_bulk_streams_is_answered_soon() {
    let (mesh, listener) = opaque();
    let bulk: Vec<_> = (0..3).map(|_| through(&mesh, &listener)).collect();
    let (mut client, mut server) = through(&mesh, &listener);
    // Ends also when the test fails.
    let end = Instant::now() + PATIENCE;
    let done = AtomicBool::new(false);
    let times = thread::scope(|scope| {
        for (sender, receiver) in &bulk {
            let done = &done;
            scope.spawn(move || {
                let block = vec![7; 256 << 10];
                while !done.load(Ordering::SeqCst) && Instant::now() < end {
                    (&*sender).write_all(&block).unwrap();
                }
                sender.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut room = vec![0; 256 << 10];
                while let Ok(1..) = (&*receiver).read(&mut room) {}
            });
        }
        scope.spawn(move || {
            let mut byte = [0];
            while let Ok(1) = server.read(&mut byte) {
                server.write_all(&byte).unwrap();
            }
        });
        let exchange = || -> std::io::Result<Duration> {
            let start = Instant::now();
            client.write_all(b"?")?;
            client.read_exact(&mut [0])?;
            Ok(start.elapsed())
        };
        let times: Result<Vec<_>, _> = std::iter::repeat_with(exchange).take(200).collect();
        done.store(true, Ordering::SeqCst);
        client.shutdown(Shutdown::Write).unwrap();
        times
    });
    let mut times = times.unwrap();
    times.sort();
    println!("median {:?}, slowest {:?}", times[100], times[199]);
    assert!(times[100] < Duration::from_millis(50), "{:?}", times[100]);
}
