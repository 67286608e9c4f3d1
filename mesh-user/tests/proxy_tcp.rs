//! Opaque TCP and detection over real sockets.

mod proxy_support;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use mesh_user::{
    model::{Protocol, TimeoutPolicy},
    proxy::{Command, wire::OriginLookup},
};
use proxy_support::*;

fn one(protocol: Protocol, address: SocketAddr) -> Plan {
    Plan::new(protocol).endpoint(address, "v1")
}

/// Random-looking bytes, the same for the same seed.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut rng = mesh_user::policy::rng::Rng::new(seed);
    (0..count.div_ceil(8))
        .flat_map(|_| rng.next_u64().to_le_bytes())
        .take(count)
        .collect()
}

fn greeter() -> SocketAddr {
    endpoint(|mut stream| {
        // The client may have gone.
        let _gone = stream.write_all(b"220 hello\r\n");
        let _end = Reader::new(stream).all();
    })
}

#[test]
fn server_first_is_not_delayed_on_a_declared_port() {
    let mesh = Mesh::start(one(Protocol::Tcp, greeter()));
    let fastest = (0..5)
        .map(|_| {
            let start = Instant::now();
            let mut client = Reader::new(mesh.connect());
            assert_eq!(client.bytes(11), b"220 hello\r\n");
            start.elapsed()
        })
        .min()
        .unwrap();
    // The fastest of five: others may be slow because the machine is.
    assert!(fastest < Duration::from_millis(5), "{fastest:?}");
}

#[test]
fn server_first_waits_for_detection_at_most_on_an_unknown_port() {
    let mesh = Mesh::start(one(Protocol::Auto, greeter()));
    let fastest = (0..3)
        .map(|_| {
            let start = Instant::now();
            let mut client = Reader::new(mesh.connect());
            assert_eq!(client.bytes(11), b"220 hello\r\n");
            start.elapsed()
        })
        .min()
        .unwrap();
    assert!(
        fastest >= Duration::from_millis(50),
        "the client had its time: {fastest:?}"
    );
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

#[test]
fn unknown_port_tells_http_from_other_protocols() {
    let echo = endpoint(|mut stream| {
        let mut buf = [0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut buf) {
            if stream.write_all(&buf[..count]).is_err() {
                return;
            }
        }
    });
    let mesh = Mesh::start(one(Protocol::Auto, echo));
    let mut opaque = Reader::new(mesh.connect());
    let start = Instant::now();
    assert_eq!(
        opaque.send(b"\x16\x03\x01binary").bytes(9),
        b"\x16\x03\x01binary"
    );
    assert!(start.elapsed() < Duration::from_secs(1));
    // The endpoint echoes the head, which is no answer: so it was taken for HTTP.
    let mut http = Reader::new(mesh.connect());
    let answer = http.send(GET).message().unwrap();
    assert_eq!(answer.status(), 502);
    // A beginning that could be HTTP, and then silence: opaque after the detection time.
    let mut slow = Reader::new(mesh.connect());
    assert_eq!(slow.send("GET /").bytes(5), b"GET /");
}

#[test]
fn half_close_passes_in_both_directions() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let all = reader.all();
        reader.send(format!("got {}", all.len()));
        reader.stream.shutdown(Shutdown::Write).unwrap();
    });
    let mesh = Mesh::start(one(Protocol::Tcp, up));
    let mut client = Reader::new(mesh.connect());
    client.send(vec![b'x'; 100_000]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.all(), b"got 100000");
    // The other way round: the endpoint ends first, the client goes on.
    let (sent, got) = mpsc::channel();
    let up = endpoint(move |stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        sent.send(Reader::new(stream).all()).unwrap();
    });
    let mesh = Mesh::start(one(Protocol::Tcp, up));
    let mut client = Reader::new(mesh.connect());
    assert!(client.is_closed());
    client.send("still here");
    drop(client);
    assert_eq!(got.recv_timeout(PATIENCE).unwrap(), b"still here");
}

#[test]
fn reset_passes_in_both_directions() {
    let (kinds, got) = mpsc::channel();
    let up = endpoint(move |mut stream| {
        let mut buf = [0; 4];
        stream.read_exact(&mut buf).unwrap();
        match &buf {
            b"die!" => reset(stream),
            _ => kinds.send(Reader::new(stream).is_reset()).unwrap(),
        }
    });
    let mesh = Mesh::start(one(Protocol::Tcp, up));
    let mut client = Reader::new(mesh.connect());
    assert!(
        client.send("die!").is_reset(),
        "from the endpoint to the client"
    );
    let mut client = Reader::new(mesh.connect());
    client.send("stay");
    eventually("the endpoint has the connection", || {
        mesh.workload.connections.load(Ordering::SeqCst) == 1
    });
    // A FIN is a FIN, a RST is a RST.
    drop(client);
    assert!(!got.recv_timeout(PATIENCE).unwrap(), "an orderly end");
    let mut client = Reader::new(mesh.connect());
    client.send("stay");
    reset(client.stream);
    assert!(
        got.recv_timeout(PATIENCE).unwrap(),
        "from the client to the endpoint"
    );
}

#[test]
fn hundred_mebibytes_pass_unchanged_in_both_directions_at_once() {
    const COUNT: usize = 100 << 20;
    // Made before anybody waits for it.
    let [forth, back] = [1, 2].map(|seed| Arc::new(noise(seed, COUNT)));
    let (want, send) = (Arc::clone(&forth), Arc::clone(&back));
    let up = endpoint(move |stream| {
        let mut back = stream.try_clone().unwrap();
        let send = Arc::clone(&send);
        let writer = thread::spawn(move || {
            for piece in send.chunks(77_777) {
                back.write_all(piece).unwrap();
            }
            back.shutdown(Shutdown::Write).unwrap();
        });
        assert!(Reader::new(stream).all() == **want, "to the endpoint");
        writer.join().unwrap();
    });
    let mesh = Mesh::start(one(Protocol::Tcp, up));
    let client = mesh.connect();
    let mut sender = client.try_clone().unwrap();
    let writer = thread::spawn(move || {
        for piece in forth.chunks(33_333) {
            sender.write_all(piece).unwrap();
        }
        sender.shutdown(Shutdown::Write).unwrap();
    });
    assert!(Reader::new(client).all() == *back, "to the client");
    writer.join().unwrap();
    eventually("the record", || mesh.records("connection").len() == 1);
    let line = &mesh.log()[0];
    assert!(line.to_string().contains(&COUNT.to_string()), "{line}");
}

#[test]
fn single_bytes_pass_with_their_boundaries_in_time() {
    let up = endpoint(|mut stream| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            if stream.write_all(&byte).is_err() {
                return;
            }
        }
    });
    let mesh = Mesh::start(one(Protocol::Tcp, up));
    let mut client = mesh.connect();
    let start = Instant::now();
    for index in 0..=255_u8 {
        client.write_all(&[index]).unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], index);
    }
    // With Nagle's algorithm on either side each would take 40 ms.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn idle_connection_is_reset_after_the_idle_time_out() {
    let plan = one(Protocol::Tcp, greeter()).policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            idle: Some(Duration::from_millis(200)),
            ..TimeoutPolicy::default()
        };
    });
    let mesh = Mesh::start(plan);
    let start = Instant::now();
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.bytes(11), b"220 hello\r\n");
    assert!(client.is_reset());
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn endpoint_that_refuses_is_left_for_another() {
    let plan = one(Protocol::Tcp, nobody()).endpoint(greeter(), "v1");
    let mesh = Mesh::start(plan);
    for _ in 0..8 {
        assert_eq!(Reader::new(mesh.connect()).bytes(11), b"220 hello\r\n");
    }
    let mesh = Mesh::start(one(Protocol::Tcp, nobody()));
    assert!(
        Reader::new(mesh.connect()).is_reset(),
        "nobody serves: a reset, and no silence"
    );
    eventually("the record", || mesh.records("connection").len() == 1);
    assert!(mesh.log()[0].to_string().contains("UF"), "{:?}", mesh.log());
}

#[test]
fn max_connections_of_a_tcp_service_refuses_the_next_one_only() {
    let plan = one(Protocol::Tcp, greeter()).breaker(|breaker| breaker.max_connections = 2);
    let mesh = Mesh::start(plan);
    let mut held: Vec<Reader> = (0..2).map(|_| Reader::new(mesh.connect())).collect();
    for client in &mut held {
        assert_eq!(client.bytes(11), b"220 hello\r\n");
    }
    assert!(Reader::new(mesh.connect()).is_reset());
    held.pop();
    eventually("room again", || {
        let mut client = Reader::new(mesh.connect());
        client.at_most(11) == b"220 hello\r\n"
    });
}

/// Says always the same.
#[derive(Debug)]
struct Origin(SocketAddr);

impl OriginLookup for Origin {
    fn asked(&self, _: u32, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        Some(self.0)
    }

    fn sent_to_loopback(&self, _: BorrowedFd<'_>) -> Option<SocketAddr> {
        Some(self.0)
    }
}

/// A further listener of the workload, whose address is no service's.
fn stranger(mesh: &Mesh) -> SocketAddr {
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    let workload = Arc::clone(&mesh.workload);
    mesh.workers
        .as_ref()
        .unwrap()
        .send(0, Command::Listen { workload, listener });
    address
}

#[test]
fn connection_to_the_proxy_itself_is_reset_as_a_loop() {
    let mesh = Mesh::start(one(Protocol::Tcp, greeter()));
    assert!(Reader::new(connect(stranger(&mesh))).is_reset());
    eventually("the record", || mesh.records("connection").len() == 1);
    assert!(
        mesh.log()[0].to_string().contains("loop"),
        "{:?}",
        mesh.log()
    );
}

#[test]
fn unknown_destination_is_reset_and_never_guessed() {
    let unknown = Arc::new(Origin(SocketAddr::from(([192, 0, 2, 1], 80))));
    let plan = one(Protocol::Tcp, greeter());
    let mesh = Mesh::with_origins(plan, 1, |_| {}, unknown);
    assert!(Reader::new(connect(stranger(&mesh))).is_reset());
    eventually("the record", || mesh.records("connection").len() == 1);
    let line = mesh.log()[0].to_string();
    assert!(
        line.contains("unknown_destination") && line.contains("192.0.2.1:80"),
        "{line}"
    );
}

#[test]
fn destination_from_the_flow_table_is_served() {
    let vip = SocketAddr::from(([192, 0, 2, 1], 80));
    let mut plan = one(Protocol::Tcp, greeter());
    plan.addresses = vec![vip];
    let mesh = Mesh::with_origins(plan, 1, |_| {}, Arc::new(Origin(vip)));
    assert_eq!(
        Reader::new(connect(stranger(&mesh))).bytes(11),
        b"220 hello\r\n"
    );
}

#[test]
fn workload_connections_at_their_limit_and_above_over_several_workers() {
    let mesh = Mesh::with(one(Protocol::Tcp, greeter()), 2, |limits| {
        limits.workload_connections_max = 20;
    });
    let results: Vec<(TcpStream, bool)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Reader::new(mesh.connect());
                    let served = client.at_most(11) == b"220 hello\r\n";
                    (client.stream, served)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let served = results.iter().filter(|(_, served)| *served).count();
    assert_eq!(served, 20, "exactly the limit, whoever accepts");
    assert_eq!(mesh.workload.connections.load(Ordering::SeqCst), 20);
    drop(results);
    eventually("all are given back", || {
        mesh.workload.connections.load(Ordering::SeqCst) == 0
    });
    assert!(
        mesh.log()
            .iter()
            .any(|line| line.to_string().contains("workload_connections"))
    );
}

#[test]
fn released_workload_keeps_no_socket() {
    let (closed, got) = mpsc::channel();
    let up = endpoint(move |mut stream| {
        stream.write_all(b"220 hello\r\n").unwrap();
        let _all = Reader::new(stream).all();
        closed.send(()).unwrap();
    });
    let mesh = Mesh::start(one(Protocol::Tcp, up));
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.bytes(11), b"220 hello\r\n");
    mesh.workers
        .as_ref()
        .unwrap()
        .send(0, Command::Release { pod_id: 7 });
    let _rest = client.all();
    got.recv_timeout(PATIENCE)
        .expect("the endpoint's connection ends");
    eventually("the listener closes", || {
        TcpStream::connect(mesh.address)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    eventually("nothing refers to the workload", || {
        Arc::strong_count(&mesh.workload) == 1
    });
}
