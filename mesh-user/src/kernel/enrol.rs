//! Enrols, puts live, releases.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, TcpListener},
    os::fd::OwnedFd,
    sync::Arc,
};

use aya::maps::MapError;
use mesh_common::{
    abi::SHARDS_MAX,
    addr::Addr,
    listener::{KIND_IN, KIND_OUT},
    maps::get,
    pod::{
        ADDR_SECOND_PASS, FAIL_CLOSED, FAIL_OPEN, MODE_LOOPBACK, MODE_MARK, POD_BROKEN,
        POD_GUARDED, PodAddr, PodEntry,
    },
};

use super::{
    Enrol, Enrolled, Kernel,
    error::EnrolError,
    inbound::code,
    instances, loopback,
    netns::{self, Identity},
    object::STEER,
    records::Record,
    sockets::{self, PodSockets},
    workload::{
        self, Prepared, Sources, Stood, Workload, attach_steer, listener_key, map_addr, prepare,
        self_probe,
    },
};
use crate::{
    clock,
    model::{
        Failure, Interception, Mode, SecondPass,
        inbound::{InboundAction, InboundPorts},
    },
};

impl Kernel {
    /// Enrols a workload up to the self-probe. Synchronous; takes milliseconds.
    ///
    /// # Errors
    /// Namespace gone, address taken by another workload, map full, probe failed, ... Nothing of
    /// the workload is left then, but for one thing: where it must not bypass the mesh
    /// (`failure: closed`), or was captured by an agent before us, its failure mode and its inbound
    /// rules are in force until it is enrolled, [unwanted](Kernel::want) or gone. One that an agent
    /// beside us serves still ([`Kernel::take_over`]) stays as that one has it.
    pub fn enrol(&mut self, wanted: &Enrol) -> Result<Enrolled, EnrolError> {
        let (netns, identity) = netns::open(&wanted.netns)?;
        self.check_identity(&identity)?;
        self.check_instances(&netns, &identity)?;
        self.expire_elsewhere(&wanted.key, identity.cookie);
        let adopted = self.take_adopted(&identity);
        let before = adopted.is_some();
        let record = Record {
            pod_id: adopted
                .as_ref()
                .map_or_else(|| self.fresh_id(), |record| record.pod_id),
            key: wanted.key.to_string(),
            netns: identity.path.clone(),
            inode: identity.inode,
            cookie: identity.cookie,
            sysctl_before: adopted
                .as_ref()
                .and_then(|record| record.sysctl_before.clone()),
            held: adopted.as_ref().is_some_and(|record| record.held),
        };
        let steering = self.steering();
        let (mark, shards) = (self.config.agent_mark, self.shards);
        let marked = wanted.interception.marks() || wanted.inbound.captures();
        let stood = if before { Stood::Yes } else { Stood::No };
        if marked {
            self.announce(&netns, &record);
        }
        let prepared = match prepare(&netns, &identity, steering, (marked, stood), mark, shards) {
            Ok(prepared) => prepared,
            Err(error) => {
                if let Some(served) = adopted.filter(|record| self.beside && !record.held) {
                    self.adopted.insert(served.pod_id, served);
                } else if before || wanted.interception.failure == Failure::Closed {
                    self.hold(record, wanted, &netns);
                }
                self.write_records();
                return Err(error);
            }
        };
        let (pod_id, sysctl_before) = (record.pod_id, record.sysctl_before.clone());
        let workload = Workload {
            key: Arc::clone(&wanted.key),
            interception: wanted.interception,
            inbound: if before {
                self.installed_inbound(pod_id)
            } else {
                InboundPorts::default()
            },
            sockets: Arc::new(PodSockets::new(
                netns,
                mark,
                self.config.capture_mark,
                &prepared.addresses,
            )),
            addresses: BTreeSet::new(),
            source: Sources::of(&prepared.addresses),
            sysctl_before: netns::merged(
                sysctl_before.as_deref(),
                prepared.sysctl_before.as_deref(),
            ),
            steered: marked,
            // What an agent before us put live is live still, and must stay so.
            live: before,
            probed: before && !record.held,
            broken: false,
            identity,
        };
        self.workloads.insert(pod_id, workload);
        match self.connect_up(pod_id, &prepared, &wanted.inbound) {
            Ok(sockets) => {
                self.write_records();
                Ok(Enrolled {
                    pod_id,
                    listeners: prepared.listeners,
                    inbound: prepared.inbound,
                    sockets,
                })
            }
            Err(error) => {
                self.step_back(pod_id, wanted, &error);
                Err(error)
            }
        }
    }

    /// Writes down what a workload's settings were, before they change: whoever cleans up after an
    /// agent that was killed in between knows no other way.
    fn announce(&self, netns: &OwnedFd, record: &Record) {
        let planned = sockets::inside(netns, netns::sysctls_to_set);
        if let Ok(Ok(planned)) = planned {
            let before = netns::merged(record.sysctl_before.as_deref(), planned.as_deref());
            self.write_records_and(Some(&Record {
                sysctl_before: before,
                ..record.clone()
            }));
        }
    }

    /// After an enrolment that failed on its way.
    fn step_back(&mut self, pod_id: u32, wanted: &Enrol, error: &EnrolError) {
        let Some(workload) = self.workloads.get(&pod_id) else {
            return;
        };
        if matches!(error, EnrolError::OtherInstance { .. }) {
            return self.take_away(pod_id, true);
        }
        let holds = workload.live || workload.interception.failure == Failure::Closed;
        let Some(netns) = workload.sockets.namespace().filter(|_| holds) else {
            return self.release(pod_id);
        };
        let record = workload.record(pod_id);
        // Where another agent serves, link, listeners and addresses are taken back by that one.
        let served = self.beside && workload.probed;
        if let Some(workload) = self.workloads.remove(&pod_id) {
            workload.sockets.close();
        }
        if served {
            self.adopted.insert(pod_id, record);
            return;
        }
        self.hold(record, wanted, &netns);
    }

    fn check_identity(&self, identity: &Identity) -> Result<(), EnrolError> {
        let place = identity.path.display().to_string();
        if identity.cookie == self.config.agent_netns {
            return Err(EnrolError::OwnNamespace(place));
        }
        let same = self
            .workloads
            .values()
            .find(|other| other.identity.cookie == identity.cookie);
        match same {
            Some(other) => Err(EnrolError::AlreadyEnrolled {
                place,
                other: other.key.to_string(),
            }),
            None => Ok(()),
        }
    }

    fn check_instances(&self, netns: &OwnedFd, identity: &Identity) -> Result<(), EnrolError> {
        match instances::other(&self.instance, &self.pins, netns, identity) {
            Some(other) => Err(EnrolError::OtherInstance {
                place: identity.path.display().to_string(),
                other,
            }),
            None => Ok(()),
        }
    }

    fn fresh_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// From the addresses to the self-probe. On an error the caller releases the workload.
    fn connect_up(
        &mut self,
        pod_id: u32,
        prepared: &Prepared,
        inbound: &InboundPorts,
    ) -> Result<Arc<PodSockets>, EnrolError> {
        // Before the listeners: an adopted workload is captured as soon as its first one stands, and
        // `steer` knows a captured connection by its source.
        for ip in &prepared.addresses {
            self.claim(pod_id, *ip)?;
        }
        self.check_listeners(pod_id, prepared)?;
        // The first shard last: the connect hooks take it as the sign that all are there. In a
        // takeover there are as many as the agent before us has: what comes to it knows our inbound
        // rules from here on, and its workers don't.
        let kinds = [
            (KIND_IN, &prepared.inbound),
            (KIND_OUT, &prepared.listeners),
        ];
        let shards = self.config.shards.clamp(u32::from(self.shards), SHARDS_MAX) as u16;
        for (kind, listeners) in kinds {
            let again = listeners.iter().cycle();
            let places: Vec<(u16, &TcpListener)> = (0..shards).zip(again).collect();
            for (shard, listener) in places.into_iter().rev() {
                self.listeners
                    .insert(&listener_key(pod_id, kind, shard), listener)
                    .map_err(full("LISTENERS"))?;
            }
        }
        // With their listeners there, and before anything can meet them in a fresh workload.
        self.set_inbound(pod_id, inbound)?;
        self.disclaim_others(pod_id, &prepared.addresses.iter().copied().collect());
        let workload = self
            .workloads
            .get(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        let (sockets, live, probed) = (
            Arc::clone(&workload.sockets),
            workload.live,
            workload.probed,
        );
        let (identity, source) = (workload.identity.clone(), workload.source);
        let mode = workload.interception.mode;
        let netns = sockets.namespace().ok_or(EnrolError::Unknown(pod_id))?;
        let pin = self.pins.link(STEER, u64::from(pod_id));
        attach_steer(&self.steer, &netns, identity.inode, &pin)?;
        // Again: two that enrol at the same time see each other's link here at the latest.
        self.check_instances(&netns, &identity)?;
        // Where applications' connections arrive already the probe would cut them. The agent before
        // us has probed this path.
        if !probed {
            self.seem_alive()?;
            let (probes, mark) = match mode {
                Mode::Loopback => (
                    loopback::probes(source, &prepared.listeners)?,
                    self.config.agent_mark,
                ),
                Mode::Auto | Mode::Mark => (workload::probes(source), self.config.capture_mark),
            };
            self_probe(&netns, &prepared.listeners, &probes, mark)?;
        }
        if live {
            self.insert_netns(pod_id)?;
        }
        // From here on, where nothing may go past us; else with `go_live`, since what connects
        // before it has no grant.
        if live || self.is_closed(pod_id) {
            self.put_guard(pod_id)?;
        }
        Ok(sockets)
    }

    /// The kernel takes a listener of any namespace into the map, and `steer` may give it
    /// connections: they are reset without a word.
    fn check_listeners(&self, pod_id: u32, prepared: &Prepared) -> Result<(), EnrolError> {
        let workload = self
            .workloads
            .get(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        (prepared.listeners.iter())
            .chain(&prepared.inbound)
            .try_for_each(|listener| workload::check_listener(listener, &workload.identity))
    }

    /// The probe needs a heartbeat that `steer` takes for fresh, also before the first worker has
    /// ticked: an agent that enrols is alive.
    fn seem_alive(&mut self) -> Result<(), EnrolError> {
        let now = clock::now().0;
        let last = self.tables.heartbeat.get(&0, 0).unwrap_or(0);
        if now.saturating_sub(last) < self.config.heartbeat_stale_ns / 2 {
            return Ok(());
        }
        self.tables
            .heartbeat
            .set(0, now, 0)
            .map_err(|error| map_error("HEARTBEAT", error))
    }

    /// Enters an address of a workload into `POD_BY_ADDR`.
    pub(super) fn claim(&mut self, pod_id: u32, ip: IpAddr) -> Result<(), EnrolError> {
        let workload = self
            .workloads
            .get(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        let value = self.pod_addr(pod_id, workload.interception, workload.inbound.default);
        self.enter(ip, value)?;
        if let Some(workload) = self.workloads.get_mut(&pod_id) {
            workload.addresses.insert(ip);
            self.origins.learn(ip, &workload.key);
        }
        Ok(())
    }

    /// Enters an address, unless another workload has it.
    pub(super) fn enter(&mut self, ip: IpAddr, value: PodAddr) -> Result<(), EnrolError> {
        let key = map_addr(&ip);
        if let Ok(holder) = self.tables.pod_by_addr.get(&key, 0)
            && holder.pod_id != value.pod_id
        {
            return Err(EnrolError::AddressTaken {
                addr: ip,
                other: self.name(holder.pod_id),
            });
        }
        let result = self.tables.pod_by_addr.insert(key, value, 0);
        result.map_err(|error| map_error("POD_BY_ADDR", error))
    }

    fn name(&self, pod_id: u32) -> String {
        if let Some(workload) = self.workloads.get(&pod_id) {
            return workload.key.to_string();
        }
        self.adopted
            .get(&pod_id)
            .map_or_else(|| format!("workload {pod_id}"), |record| record.key.clone())
    }

    /// Last step: from the next connect on the workload is captured.
    ///
    /// # Errors
    /// `POD_BY_NETNS` is full, or there is no such workload. What is left then is what a failed
    /// [`enrol`](Self::enrol) leaves.
    pub fn go_live(&mut self, pod_id: u32) -> Result<(), EnrolError> {
        let went = self
            .insert_netns(pod_id)
            .and_then(|()| self.put_guard(pod_id));
        match went {
            Ok(()) => {
                if let Some(workload) = self.workloads.get_mut(&pod_id) {
                    workload.live = true;
                }
                Ok(())
            }
            Err(error) => {
                if let Some(wanted) = self.workloads.get(&pod_id).map(Workload::wanted) {
                    self.step_back(pod_id, &wanted, &error);
                }
                Err(error)
            }
        }
    }

    fn is_closed(&self, pod_id: u32) -> bool {
        let workload = self.workloads.get(&pod_id);
        workload.is_some_and(|workload| workload.interception.failure == Failure::Closed)
    }

    fn insert_netns(&mut self, pod_id: u32) -> Result<(), EnrolError> {
        let workload = self
            .workloads
            .get(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        let (cookie, interception) = (workload.identity.cookie, workload.interception);
        self.write_netns(pod_id, cookie, interception)
    }

    pub(super) fn write_netns(
        &mut self,
        pod_id: u32,
        cookie: u64,
        interception: Interception,
    ) -> Result<(), EnrolError> {
        // One that is held has no listener, so nothing is sent to its loopback: what the hooks would
        // need to be attached for must not keep its failure mode from being in force.
        if interception.mode == Mode::Loopback && self.workloads.contains_key(&pod_id) {
            self.prepare_loopback(pod_id)?;
        }
        let broken = self.workloads.get(&pod_id).is_some_and(|w| w.broken);
        let guarded = interception.bypass_guard;
        let entry = PodEntry {
            pod_id,
            mode: mode(interception.mode),
            fail: fail(interception.failure),
            flags: if guarded { POD_GUARDED } else { 0 } | if broken { POD_BROKEN } else { 0 },
            generation: self.generation,
            _pad2: 0,
        };
        let result = self.tables.pod_by_netns.insert(cookie, entry, 0);
        result.map_err(|error| map_error("POD_BY_NETNS", error))
    }

    /// Puts a way of interception in force, for connects and for what is on its way.
    pub(super) fn write_interception(
        &mut self,
        pod_id: u32,
        cookie: u64,
        interception: Interception,
    ) -> Result<(), EnrolError> {
        let workload = self.workloads.get(&pod_id);
        let workload = workload.ok_or(EnrolError::Unknown(pod_id))?;
        let inbound = workload.inbound.default;
        self.write_netns(pod_id, cookie, interception)?;
        self.write_addresses(pod_id, interception, inbound)
    }

    pub(super) fn write_addresses(
        &mut self,
        pod_id: u32,
        interception: Interception,
        inbound: InboundAction,
    ) -> Result<(), EnrolError> {
        let value = self.pod_addr(pod_id, interception, inbound);
        for key in self.addresses_of(pod_id) {
            self.tables
                .pod_by_addr
                .insert(key, value, 0)
                .map_err(|error| map_error("POD_BY_ADDR", error))?;
        }
        Ok(())
    }

    /// Changes how a workload is intercepted. Its connections live on, also those that came about in
    /// another mode: rule and route stay until the workload is released.
    ///
    /// # Errors
    /// A map could not be written, or there is no such workload.
    pub fn set_interception(
        &mut self,
        pod_id: u32,
        interception: Interception,
    ) -> Result<(), EnrolError> {
        let workload = self
            .workloads
            .get(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        if interception.marks() && !workload.steered {
            self.steer_late(pod_id)?;
        }
        let workload = self
            .workloads
            .get_mut(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        workload.interception = interception;
        let inbound = workload.inbound.default;
        if workload.live {
            let cookie = workload.identity.cookie;
            // Off before its connects leave no grants any more, on after they do.
            if !interception.bypass_guard {
                self.unguard(pod_id);
            }
            self.write_interception(pod_id, cookie, interception)?;
            self.put_guard(pod_id)
        } else {
            // `go_live` says the rest.
            self.write_addresses(pod_id, interception, inbound)
        }
    }

    pub(super) fn pod_addr(
        &self,
        pod_id: u32,
        interception: Interception,
        inbound: InboundAction,
    ) -> PodAddr {
        PodAddr {
            pod_id,
            generation: self.generation,
            fail: fail(interception.failure),
            inbound: code(inbound),
            flags: match interception.second_pass {
                SecondPass::Full => ADDR_SECOND_PASS,
                SecondPass::Collapse => 0,
            },
            _pad: 0,
        }
    }

    /// First step of release: capture stops at once. Connections live on.
    pub fn stop_capture(&mut self, pod_id: u32) {
        // Off before its connects leave no grants any more.
        self.unguard(pod_id);
        if let Some(workload) = self.workloads.get_mut(&pod_id) {
            workload.live = false;
            let cookie = workload.identity.cookie;
            report("POD_BY_NETNS", self.tables.pod_by_netns.remove(&cookie));
        }
    }

    /// Last step of release: steer, listeners, rule, routes, addresses. Does nothing for a number
    /// that is not enrolled (any more).
    pub fn release(&mut self, pod_id: u32) {
        self.take_away(pod_id, false);
    }

    /// `lost`: another instance was enrolling the same namespace. Rule, route and sysctl are shared:
    /// they are the winner's then. Both may have lost; whoever looks last, its own link gone
    /// already, finds nobody and takes them back.
    fn take_away(&mut self, pod_id: u32, lost: bool) {
        self.stop_capture(pod_id);
        let Some(workload) = self.workloads.remove(&pod_id) else {
            return;
        };
        self.unpin_steer(pod_id);
        self.remove_listeners(pod_id);
        self.remove_inbound(pod_id, &workload.inbound);
        self.origins.forget(&workload.addresses);
        let shared = lost && instances::steered_by_another(&self.pins, &workload.identity);
        if let Some(netns) = workload.sockets.namespace()
            && !shared
        {
            self.undo(&netns, &workload);
        }
        for ip in &workload.addresses {
            report("POD_BY_ADDR", self.tables.pod_by_addr.remove(&map_addr(ip)));
        }
        report("POD_SOURCES", self.tables.pod_sources.remove(&pod_id));
        workload.sockets.close();
        self.write_records();
    }

    fn undo(&self, netns: &OwnedFd, workload: &Workload) {
        let before = workload.sysctl_before.as_deref();
        match workload::undo(netns, self.steering(), before) {
            Ok((_, failed)) if failed.is_empty() => {}
            Ok((_, failed)) => {
                tracing::warn!(workload = %workload.key, ?failed, "left in the namespace");
            }
            Err(error) => {
                tracing::warn!(workload = %workload.key, %error, "rule and routes are left");
            }
        }
    }

    pub(super) fn unpin_steer(&self, pod_id: u32) {
        let pin = self.pins.link(STEER, u64::from(pod_id));
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(pin = %pin.display(), %error, "the link is left");
            }
            _ => {}
        }
    }

    pub(super) fn remove_listeners(&self, pod_id: u32) {
        for kind in [KIND_OUT, KIND_IN] {
            for shard in 0..SHARDS_MAX as u16 {
                // Closed ones are gone by themselves.
                let _ = self.listeners.remove(&listener_key(pod_id, kind, shard));
            }
        }
    }

    /// Gives an address back.
    pub(super) fn disclaim(&mut self, pod_id: u32, ip: IpAddr) {
        let key: Addr = map_addr(&ip);
        report("POD_BY_ADDR", self.tables.pod_by_addr.remove(&key));
        if let Some(workload) = self.workloads.get_mut(&pod_id) {
            workload.addresses.remove(&ip);
            self.origins.forget([&ip]);
        }
    }
}

const fn mode(mode: Mode) -> u8 {
    match mode {
        Mode::Auto | Mode::Mark => MODE_MARK,
        Mode::Loopback => MODE_LOOPBACK,
    }
}

fn fail(failure: Failure) -> u8 {
    match failure {
        Failure::Open => FAIL_OPEN,
        Failure::Closed => FAIL_CLOSED,
    }
}

/// A removal that found nothing is fine; anything else is worth a line.
pub(super) fn report(map: &'static str, result: Result<(), MapError>) {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => {}
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => tracing::warn!(map, %error, "an entry is left"),
    }
}

/// E2BIG says «full».
fn full(map: &'static str) -> impl Fn(io::Error) -> EnrolError {
    move |source| {
        if source.raw_os_error() == Some(libc::E2BIG) {
            EnrolError::MapFull {
                map,
                capacity: get(map).capacity,
            }
        } else {
            EnrolError::Io {
                what: format!("map {map}"),
                source,
            }
        }
    }
}

pub(super) fn map_error(map: &'static str, error: MapError) -> EnrolError {
    match error {
        MapError::SyscallError(error) => full(map)(error.io_error),
        other => full(map)(io::Error::other(other)),
    }
}
