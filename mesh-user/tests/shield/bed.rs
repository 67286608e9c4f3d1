//! Two namespaces with a veth between them: the node, whose end is its uplink, and the outside.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mesh_user::{
    kernel::{
        Instance,
        cleanup::{Report, cleanup},
        mounts,
        shield::{FileList, Shield, ShieldOptions},
    },
    model::shield::{Deny, Mode, Net, Shield as Wanted},
};
use nix::sched::{CloneFlags, setns};

pub(crate) const NODE: &str = "192.0.2.1";
pub(crate) const OUTSIDE: &str = "192.0.2.2";
/// A second address of the outside.
pub(crate) const PARTNER: &str = "192.0.2.3";
pub(crate) const OUTSIDE6: &str = "2001:db8::2";
pub(crate) const NODE6: &str = "2001:db8::1";
const LIMIT: Duration = Duration::from_secs(10);

/// Removed on drop, with everything of the instance.
pub(crate) struct Bed {
    pub(crate) instance: Instance,
    name: String,
}

fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split(' '))
        .output()
        .expect("ip");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {words}: {error}");
}

impl Bed {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("shield-{}-{number}", std::process::id());
        let bed = Self {
            instance: Instance::new(&name).expect("a good name"),
            name,
        };
        let (node, outside) = (bed.netns("node"), bed.netns("out"));
        ip(&format!("netns add {node}"));
        ip(&format!("netns add {outside}"));
        for netns in [&node, &outside] {
            ip(&format!("-n {netns} link set lo up"));
        }
        bed.pair();
        bed
    }

    fn netns(&self, side: &str) -> String {
        format!("mb-{}-{side}", self.name)
    }

    pub(crate) fn path(&self, side: &str) -> PathBuf {
        Path::new("/run/netns").join(self.netns(side))
    }

    /// Makes the two ends; also again, after the node's was deleted.
    pub(crate) fn pair(&self) {
        let (node, outside) = (self.netns("node"), self.netns("out"));
        ip(&format!(
            "-n {node} link add up0 type veth peer name out0 netns {outside}"
        ));
        for (netns, link, addresses) in [
            (
                &node,
                "up0",
                [format!("{NODE}/24"), format!("{NODE6}/64")].as_slice(),
            ),
            (
                &outside,
                "out0",
                &[
                    format!("{OUTSIDE}/24"),
                    format!("{PARTNER}/24"),
                    format!("{OUTSIDE6}/64"),
                ],
            ),
        ] {
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                ip(&format!("-n {netns} addr add {address} dev {link}{nodad}"));
            }
            ip(&format!("-n {netns} link set {link} up"));
        }
        ip(&format!(
            "-n {node} route add default via {OUTSIDE} dev up0"
        ));
    }

    pub(crate) fn ip(&self, side: &str, words: &str) {
        ip(&format!("-n {} {words}", self.netns(side)));
    }

    /// Runs on a thread inside one of the two.
    pub(crate) fn inside<T: Send>(&self, side: &str, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path(side)).expect("a namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("root");
                f()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    pub(crate) fn start(&self) -> Shield {
        self.start_with(true)
    }

    pub(crate) fn start_with(&self, tcx: bool) -> Shield {
        let options = ShieldOptions {
            instance: self.instance.clone(),
            tcx,
        };
        self.inside("node", || Shield::start(&options).expect("it starts"))
    }

    pub(crate) fn apply(&self, shield: &mut Shield, wanted: &Wanted) {
        self.inside("node", || {
            shield.apply(wanted, Vec::new()).expect("in force")
        });
    }

    pub(crate) fn apply_files(&self, shield: &mut Shield, wanted: &Wanted, files: Vec<FileList>) {
        self.inside("node", || shield.apply(wanted, files).expect("in force"));
    }

    pub(crate) fn tick(&self, shield: &mut Shield) {
        self.inside("node", || {
            shield.tick(mesh_user::clock::now()).expect("it ticks");
        });
    }

    pub(crate) fn cleanup(&self) -> Report {
        self.inside("node", || cleanup(&self.instance, false, true))
    }

    pub(crate) fn index(&self, side: &str, link: &str) -> u32 {
        self.inside(side, || {
            nix::net::if_::if_nametoindex(link).expect("an interface")
        })
    }

    /// Where something of the shield is pinned.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        let bpffs = mounts::bpffs().expect("mountinfo").expect("a bpffs");
        let root = bpffs.join("mesh").join(self.instance.name());
        let version = std::fs::read_dir(root).expect("pins").flatten().next();
        version
            .expect("one version")
            .path()
            .join("shield")
            .join(name)
    }

    pub(crate) fn link(&self, how: &str) -> PathBuf {
        let index = self.index("node", "up0");
        self.pin(&format!("links/{how}-{index}"))
    }

    /// A socket at the node that datagrams go to.
    pub(crate) fn listener(&self, address: &str) -> UdpSocket {
        let address: IpAddr = address.parse().expect("an address");
        let socket = self.inside("node", || {
            UdpSocket::bind(SocketAddr::new(address, 0)).expect("bind")
        });
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .expect("a timeout");
        socket
    }

    /// A socket of the outside.
    pub(crate) fn sender(&self, address: &str) -> UdpSocket {
        let address: IpAddr = address.parse().expect("an address");
        self.inside("out", || {
            UdpSocket::bind(SocketAddr::new(address, 0)).expect("bind")
        })
    }

    /// Whether datagrams from an address arrive; decided by the shield's counter when not.
    pub(crate) fn arrives(&self, shield: &Shield, from: &str) -> bool {
        let node = if from.contains(':') { NODE6 } else { NODE };
        let (to, from) = (self.listener(node), self.sender(from));
        let dropped = || count(shield, "drop_deny");
        let before = dropped();
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            from.send_to(b"x", to.local_addr().expect("bound"))
                .expect("sent");
            if to.recv(&mut [0; 8]).is_ok() {
                return true;
            }
            // One may be left from an earlier question, or have met a program that goes just now:
            // the kernel detaches a link some time after its pin.
            if dropped() >= before + 3 {
                return false;
            }
        }
        panic!("neither arrived nor dropped within {LIMIT:?}");
    }

    /// Whether TSO of an interface is on.
    pub(crate) fn tso(&self, side: &str, link: &str) -> bool {
        /// `ETHTOOL_GTSO`, and its answer.
        #[repr(C)]
        struct Value {
            command: u32,
            data: u32,
        }
        self.inside(side, || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
            let mut value = Value {
                command: 0x1e,
                data: 0,
            };
            let mut request = libc::ifreq {
                ifr_name: [0; libc::IFNAMSIZ],
                ifr_ifru: libc::__c_anonymous_ifr_ifru {
                    ifru_data: (&raw mut value).cast(),
                },
            };
            for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
                *to = from as libc::c_char;
            }
            #[expect(unsafe_code, reason = "a raw system call")]
            // SAFETY: both structures live for the call, and are those that the command wants.
            let result = unsafe { libc::ioctl(socket.as_raw_fd(), 0x8946, &raw mut request) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            value.data != 0
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let report = self.cleanup();
        if !report.failed.is_empty() {
            eprintln!("cleanup of {}: {:?}", self.name, report.failed);
        }
        for side in ["node", "out"] {
            let netns = self.netns(side);
            let _ = Command::new("ip").args(["netns", "del", &netns]).status();
        }
    }
}

/// Frames that were counted for a reason.
pub(crate) fn count(shield: &Shield, reason: &str) -> u64 {
    let counts = shield.counts();
    let count = counts.iter().find(|count| count.reason == reason);
    count.expect("a known reason").packets
}

/// `up0` in a mode, and nothing denied.
pub(crate) fn wanted(mode: Mode) -> Wanted {
    Wanted {
        interfaces: vec!["up0".to_owned()],
        mode,
        ..Wanted::default()
    }
}

pub(crate) fn deny(cidr: &str) -> Deny {
    let net = cidr.parse::<IpNet>();
    Deny {
        cidr: net.unwrap_or_else(|_| cidr.parse::<IpAddr>().expect("a range").into()),
        rule: None,
    }
}

pub(crate) fn net(text: &str) -> Net {
    text.parse().expect("a range")
}
