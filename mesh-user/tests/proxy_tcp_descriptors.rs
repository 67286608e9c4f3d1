//! Opaque streams when no descriptor is left: alone in its process, because the limit is the
//! process's.

mod proxy_support;

use std::{
    fs::File,
    io::Write,
    net::{Shutdown, TcpStream},
    thread,
};

use mesh_user::model::Protocol;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_support::*;

/// Pipe ends that this process has.
fn pipe_ends() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    links
        .filter(|to| to.to_string_lossy().starts_with("pipe:"))
        .count()
}

fn pass(client: TcpStream, server: TcpStream) {
    const COUNT: usize = 32 << 20;
    let sent: Vec<u8> = (0..COUNT).map(|index| (index % 251) as u8).collect();
    thread::scope(|scope| {
        let sent = &sent;
        scope.spawn(move || {
            (&client).write_all(sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(Reader::new(server).all() == *sent);
    });
}

/// Bytes of a bulk stream go through pipes while there are descriptors, and by copy when there are
/// none: a connection that is open stays whole.
#[test]
fn bulk_stream_without_descriptors_for_a_pipe_is_copied() {
    let (listener, address) = bind();
    let mesh = Mesh::start(Plan::new(Protocol::Tcp).endpoint(address, "v1"));
    let before = pipe_ends();
    let open: Vec<_> = (0..2)
        .map(|_| (mesh.connect(), listener.accept().unwrap().0))
        .collect();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 200, hard).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    let mut open = open.into_iter();
    let (client, server) = open.next().unwrap();
    // The list of descriptors needs one.
    hoard.pop();
    let one = File::open("/dev/null").unwrap();
    pass(client, server);
    drop(one);
    assert_eq!(pipe_ends(), before, "copied");
    drop(hoard);
    let (client, server) = open.next().unwrap();
    pass(client, server);
    assert!(pipe_ends() > before, "through a pipe, which is kept");
    drop(mesh);
    eventually("the pipes are closed", || pipe_ends() == before);
}
