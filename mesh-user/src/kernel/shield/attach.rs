//! Where the programs stand on an interface, and why not elsewhere.
//!
//! Others' programs are never replaced: an XDP program of somebody else makes us decline XDP, by
//! name; at tcx and clsact we stand beside others.

use std::{collections::BTreeSet, fs, io, os::fd::OwnedFd, path::Path};

use super::{
    super::{
        Instance,
        route::Netlink,
        sys::{self, LinkTarget, device},
    },
    clsact,
    interface::Interface,
    object::{Place, Programs},
    offloads,
};
use crate::model::shield::Mode;

/// How the shield stands on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// In the driver.
    Xdp,
    /// In the driver, for frames in several buffers.
    Frags,
    /// At tcx ingress.
    Tcx,
    /// A filter of clsact.
    Clsact,
}

impl How {
    const LINKS: [Self; 3] = [Self::Xdp, Self::Frags, Self::Tcx];

    /// Its name in the status, in metrics and in the links' pins.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Frags => "xdp-frags",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// The largest MTU whose frame fits into one page with XDP's headroom (256) and the kernel's
/// `skb_shared_info` (320), Ethernet and two tags: beyond it drivers want the other program.
const ONE_BUFFER_MTU: u32 = 4_096 - 256 - 320 - 22;

/// Where it stands, and why not where it would be better.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) how: Option<How>,
    pub(super) why: Option<String>,
}

impl Stand {
    pub(super) fn missing() -> Self {
        Self::nowhere("there is no such interface now")
    }

    fn nowhere(why: impl Into<String>) -> Self {
        Self {
            how: None,
            why: Some(why.into()),
        }
    }
}

/// What attaching needs.
pub(super) struct Attacher<'a> {
    pub(super) instance: &'a Instance,
    pub(super) place: &'a Place,
    pub(super) programs: &'a Programs,
    pub(super) netlink: &'a mut Netlink,
    /// Whether tcx is tried at all.
    pub(super) tcx: bool,
}

impl Attacher<'_> {
    /// Brings the shield onto an interface, or says why not. What an agent before us left there is
    /// taken over: its programs are replaced in place, so that no frame meets a gap.
    pub(super) fn attach(&mut self, interface: &Interface, mode: Mode) -> Stand {
        if !interface.ethernet {
            return self.clear(interface, "its frames carry no Ethernet header");
        }
        if mode == Mode::Tc {
            return self.tc(interface, None);
        }
        match self.native(interface, mode) {
            Ok(how) => {
                self.remove_but(interface.index, Some(how));
                Stand {
                    how: Some(how),
                    why: None,
                }
            }
            Err(why) if mode == Mode::Auto => self.tc(interface, Some(why)),
            Err(why) => self.clear(interface, &why),
        }
    }

    /// Whether what stood on an interface still does.
    pub(super) fn stands(&mut self, interface: &Interface, stand: &Stand) -> bool {
        let index = interface.index;
        match stand.how {
            // What was refused stays refused until the next configuration.
            None => stand.why != Stand::missing().why,
            Some(How::Clsact) => {
                clsact::find(self.netlink, self.instance, index).is_ok_and(|found| found.is_some())
            }
            Some(how) => sys::open_pin(&self.place.link(how.label(), index))
                .and_then(sys::link_info)
                .is_ok_and(|info| info.target == LinkTarget::Interface(index)),
        }
    }

    fn clear(&mut self, interface: &Interface, why: &str) -> Stand {
        self.remove_but(interface.index, None);
        Stand::nowhere(why)
    }

    /// Why not, in words: it is shown as it is.
    fn native(&mut self, interface: &Interface, mode: Mode) -> Result<How, String> {
        if interface.is_pod_pair() && mode != Mode::ForceNative {
            return Err(format!(
                "it is a {}: native XDP would turn segmentation offload of its peer off (mode \
                 force-native attaches all the same)",
                interface.kind.as_deref().unwrap_or("veth")
            ));
        }
        let order = if interface.mtu > ONE_BUFFER_MTU {
            [How::Frags, How::Xdp]
        } else {
            [How::Xdp, How::Frags]
        };
        for how in order {
            if self.adopt(interface.index, how) {
                return Ok(how);
            }
        }
        if let Some(id) = interface.xdp
            && !self.own_xdp(interface.index, id)
        {
            return Err(held(id));
        }
        let before = offloads::active(&interface.name).unwrap_or_default();
        let mut refused = String::new();
        for how in order {
            // What stands there with the other program is ours: it goes first.
            self.remove_xdp(interface.index);
            match self.attach_native(interface, how) {
                Ok(()) => return self.keep_if_harmless(interface, how, mode, &before),
                Err(error) => refused = format!("{refused}{}{error}", separator(&refused)),
            }
        }
        Err(format!("its driver refused native XDP ({refused})"))
    }

    fn attach_native(&self, interface: &Interface, how: How) -> Result<(), String> {
        let program = match (how, &self.programs.frags) {
            (How::Frags, Ok(program)) => program,
            (How::Frags, Err(why)) => return Err(format!("the program for large frames: {why}")),
            _ => &self.programs.xdp,
        };
        let link =
            device::attach_xdp(program, interface.index).map_err(|error| error.to_string())?;
        let path = self.place.link(how.label(), interface.index);
        sys::pin(&link, &path).map_err(|error| format!("pinning {}: {error}", path.display()))
    }

    /// Pitfall 26: a driver that pays for XDP with its offloads is not asked to.
    fn keep_if_harmless(
        &self,
        interface: &Interface,
        how: How,
        mode: Mode,
        before: &BTreeSet<String>,
    ) -> Result<How, String> {
        let after = offloads::active(&interface.name).unwrap_or_default();
        let lost: Vec<&str> = before.difference(&after).map(String::as_str).collect();
        if lost.is_empty() || mode == Mode::ForceNative {
            return Ok(how);
        }
        self.remove_xdp(interface.index);
        // Not every driver gives them back by itself.
        let back = match offloads::turn_on(&interface.name, &lost) {
            Ok(()) => "they are on again".to_owned(),
            Err(error) => format!("turn them on again with ethtool -K ({error})"),
        };
        Err(format!(
            "native XDP turned offloads off: {}; {back}",
            lost.join(", ")
        ))
    }

    /// At tc ingress; `why`: why not in the driver.
    fn tc(&mut self, interface: &Interface, why: Option<String>) -> Stand {
        match self.attach_tc(interface.index) {
            Ok(how) => {
                self.remove_but(interface.index, Some(how));
                Stand {
                    how: Some(how),
                    why,
                }
            }
            Err(error) => {
                let why = why.map_or_else(String::new, |why| format!("{why}; "));
                self.clear(interface, &format!("{why}tc ingress: {error}"))
            }
        }
    }

    fn attach_tc(&mut self, interface: u32) -> io::Result<How> {
        if self.tcx {
            if self.adopt(interface, How::Tcx) {
                return Ok(How::Tcx);
            }
            match device::attach_tcx(&self.programs.tc, interface) {
                Ok(link) => {
                    sys::pin(&link, &self.place.link(How::Tcx.label(), interface))?;
                    return Ok(How::Tcx);
                }
                // Linux before 6.6 doesn't know the attach type.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        clsact::attach(self.netlink, self.instance, interface, &self.programs.tc)?;
        Ok(How::Clsact)
    }

    /// Takes over a pinned link of this interface: its program is ours from here on. A link whose
    /// interface is gone, or one that can't be updated, is removed.
    fn adopt(&self, interface: u32, how: How) -> bool {
        let path = self.place.link(how.label(), interface);
        let program = match (how, &self.programs.frags) {
            (How::Frags, Ok(program)) => program,
            (How::Frags, Err(_)) => return false,
            (How::Tcx, _) => &self.programs.tc,
            _ => &self.programs.xdp,
        };
        match update(&path, interface, program) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(link = %path.display(), %error, "a link of the shield is made anew");
                remove(&path);
                false
            }
        }
    }

    /// Whether the XDP program with this id runs through a link of ours.
    fn own_xdp(&self, interface: u32, id: u32) -> bool {
        [How::Xdp, How::Frags].iter().any(|how| {
            sys::open_pin(&self.place.link(how.label(), interface))
                .and_then(sys::link_info)
                .is_ok_and(|info| info.prog_id == id)
        })
    }

    fn remove_xdp(&self, interface: u32) {
        for how in [How::Xdp, How::Frags] {
            remove(&self.place.link(how.label(), interface));
        }
    }

    /// Removes what stands on an interface in another way than this one.
    pub(super) fn remove_but(&mut self, interface: u32, keep: Option<How>) {
        for how in How::LINKS {
            if Some(how) != keep {
                remove(&self.place.link(how.label(), interface));
            }
        }
        if keep != Some(How::Clsact)
            && let Err(error) = clsact::detach(self.netlink, self.instance, interface)
        {
            tracing::warn!(interface, %error, "a filter of the shield can't be removed");
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(link = %path.display(), %error, "a link of the shield can't be removed");
        }
        _ => {}
    }
}

fn update(path: &Path, interface: u32, program: &OwnedFd) -> io::Result<()> {
    let link = sys::open_pin(path)?;
    if sys::link_info(&link)?.target != LinkTarget::Interface(interface) {
        return Err(io::Error::other("its interface is gone"));
    }
    sys::link_update(&link, program)
}

fn separator(before: &str) -> &'static str {
    if before.is_empty() { "" } else { "; " }
}

/// Who holds an interface's XDP.
fn held(id: u32) -> String {
    let name = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    format!("XDP program {id} ({name:?}) of somebody else holds it")
}
