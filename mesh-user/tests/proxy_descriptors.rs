//! Out of file descriptors: alone in its process, because the limit is the process's.

mod proxy_support;

use std::{
    fs::File,
    net::TcpStream,
    time::{Duration, Instant},
};

use mesh_user::model::Protocol;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_support::*;

/// CPU time of this process so far.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let times = [usage.user_time(), usage.system_time()];
    times
        .iter()
        .map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000))
        .sum()
}

/// Without the pause the accept loop would spin; without the retry it would never accept again.
#[test]
fn accept_without_descriptors_waits_and_goes_on() {
    let mesh = Mesh::start(Plan::new(Protocol::Http).endpoint(http("ok"), "v1"));
    let mut served = Reader::new(mesh.connect());
    assert_eq!(served.send(GET).message().unwrap().status(), 200);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 100, hard).unwrap();
    let mut waiting = TcpStream::connect(mesh.address).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    // One for the client, none for the proxy.
    drop(hoard.pop());
    let late = TcpStream::connect(mesh.address).unwrap();
    let before = cpu();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let busy = cpu() - before;
    assert!(
        busy < Duration::from_millis(250),
        "{busy:?} of CPU while waiting"
    );
    assert_eq!(
        served.send(GET).message().unwrap().status(),
        200,
        "open connections are served"
    );
    drop(hoard);
    for stream in [&mut waiting, &mut { late }] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Reader::new(stream.try_clone().unwrap());
        assert_eq!(
            client.send(GET).message().unwrap().status(),
            200,
            "accepted after all"
        );
    }
}
