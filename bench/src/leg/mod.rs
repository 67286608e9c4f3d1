//! Whom we measure, and how each is started with the same rules:
//!
//! - `x-user: beta` goes to v2;
//! - of the rest 90 % goes to v1, 10 % to v2;
//! - caps on connections and requests, and ejection after five failures, never reached here;
//! - a local rate limit, evaluated for every request and never reached;
//! - the kernel path has the same ejection and a cap, and knows no headers and no rate limits; it
//!   sends all to v1, as direct does, for a second server on the same processor costs time too;
//! - logs off, one worker, upstream connections kept and shared.

mod envoy;
mod haproxy;
mod mesh;
mod nginx;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::stage::{Load, Running, SERVER_PORT, Stage};

/// Whom we measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Leg {
    /// No proxy: the client dials v1.
    Direct,
    /// The client dials a virtual address for which the kernel chooses the endpoint: no proxy.
    Kernel,
    /// The client dials the service's virtual address.
    Mesh,
    /// The client dials mesh's proxy without interception, in its own namespace.
    Plain,
    /// The client dials nginx on the node.
    Nginx,
    /// The client dials HAProxy on the node.
    Haproxy,
    /// The client dials Envoy on the node.
    Envoy,
}

impl Leg {
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Kernel,
        Self::Mesh,
        Self::Plain,
        Self::Nginx,
        Self::Haproxy,
        Self::Envoy,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Kernel => "mesh kernel",
            Self::Mesh => "mesh",
            Self::Plain => "mesh dialled",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
        }
    }
}

/// Where the programs are, and what they say of themselves.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    found: Vec<(Leg, PathBuf, String)>,
}

impl Tools {
    /// # Errors
    /// A program is not there: by name, with what installs it.
    pub(crate) fn find(legs: &[Leg], mesh: &Path, envoy: &Path) -> Result<Self> {
        let mut tools = Self::default();
        for leg in legs {
            let (path, version) = match leg {
                Leg::Direct | Leg::Plain => continue,
                Leg::Kernel | Leg::Mesh => (mesh, "--version"),
                Leg::Nginx => (Path::new("/usr/sbin/nginx"), "-v"),
                Leg::Haproxy => (Path::new("/usr/sbin/haproxy"), "-v"),
                Leg::Envoy => (envoy, "--version"),
            };
            let output = Command::new(path).arg(version).output().with_context(|| {
                format!(
                    "no {} at {}; `cargo xtask bench` gets it",
                    leg.name(),
                    path.display()
                )
            })?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let first = said
                .lines()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("unknown");
            let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
            tools.found.push((*leg, path, first.trim().to_owned()));
        }
        Ok(tools)
    }

    fn path(&self, leg: Leg) -> Result<&Path> {
        let found = self.found.iter().find(|(other, ..)| *other == leg);
        Ok(&found
            .with_context(|| format!("{} was not looked for", leg.name()))?
            .1)
    }

    /// What each program says of itself.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (Leg, &str)> {
        self.found
            .iter()
            .map(|(leg, _, version)| (*leg, version.as_str()))
    }
}

/// A leg, ready to be asked.
pub(crate) struct Started {
    /// Where the client connects.
    pub(crate) to: SocketAddr,
    /// None: direct.
    pub(crate) proxy: Option<Running>,
}

/// Starts a leg and waits until it answers.
pub(crate) fn start(stage: &Stage, tools: &Tools, leg: Leg) -> Result<Started> {
    let (to, mut proxy) = match leg {
        Leg::Direct => {
            let to = SocketAddr::from((stage.v1.v4, SERVER_PORT));
            return Ok(Started { to, proxy: None });
        }
        Leg::Kernel => mesh::start_kernel(stage, tools.path(leg)?)?,
        Leg::Mesh => mesh::start(stage, tools.path(leg)?)?,
        Leg::Plain => mesh::start_plain(stage)?,
        Leg::Nginx => nginx::start(stage, tools.path(leg)?)?,
        Leg::Haproxy => haproxy::start(stage, tools.path(leg)?)?,
        Leg::Envoy => envoy::start(stage, tools.path(leg)?)?,
    };
    stage
        .wait_ready(leg.name(), to, &mut proxy)
        .with_context(|| stage.log_tail(leg.name()))?;
    check_rules(stage, leg, to)?;
    Ok(Started {
        to,
        proxy: Some(proxy),
    })
}

/// Which rules mesh has, when they are what is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Variant {
    /// None at all.
    NoRules,
    /// Conditions of all kinds, splits, and policies of all kinds, none of which is ever in the way.
    AllRules,
    /// `x-refuse: limit` meets a limiter that is used up, `x-refuse: cap` a cap of 0.
    Refusing,
}

/// Starts mesh with other rules.
pub(crate) fn start_variant(stage: &Stage, tools: &Tools, variant: Variant) -> Result<Started> {
    let (to, mut proxy) = mesh::start_variant(stage, tools.path(Leg::Mesh)?, variant)?;
    let name = Leg::Mesh.name();
    stage
        .wait_ready(name, to, &mut proxy)
        .with_context(|| stage.log_tail(name))?;
    Ok(Started {
        to,
        proxy: Some(proxy),
    })
}

/// What is measured must be what is said: the rules are in force before anything counts.
fn check_rules(stage: &Stage, leg: Leg, to: SocketAddr) -> Result<()> {
    let mut load = Load::new(to, 8, Duration::from_millis(300));
    let report = stage.load(&load)?;
    ensure!(
        report.errors.is_empty(),
        "{}: {:?}",
        leg.name(),
        report.errors
    );
    if leg == Leg::Kernel {
        // A second server would cost time of its own, which direct does not have.
        let only = report.versions.keys().eq(["v1"]);
        ensure!(only, "{}: {:?} answered", leg.name(), report.versions);
        return Ok(());
    }
    let v2 = report.versions.get("v2").copied().unwrap_or(0);
    let share = v2 * 100 / report.requests.max(1);
    ensure!(
        report.requests < 200 || (7..=13).contains(&share),
        "{}: v2 got {share} % of {} requests instead of 10 %",
        leg.name(),
        report.requests
    );
    load.more = vec!["--header=x-user: beta".into()];
    let report = stage.load(&load)?;
    ensure!(
        report.versions.keys().eq(["v2"]),
        "{}: x-user: beta went to {:?} instead of v2",
        leg.name(),
        report.versions
    );
    Ok(())
}
