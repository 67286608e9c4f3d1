//! Active health checks: what is asked of an endpoint, how often, and what follows.

use std::time::Duration;

use serde::Serialize;

/// One check. An endpoint with several is healthy when it passes all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Another port of the endpoint than the one that is dialled for requests.
    pub port: Option<u16>,
    /// From the end of one check to the next.
    pub interval: Duration,
    /// The same for a service port that no request has gone to yet. Default 60 s, as Envoy.
    pub no_traffic_interval: Duration,
    /// Up to this share in percent is added to an interval at random. Default 10.
    pub jitter_percent: u8,
    /// For the whole check, connecting included.
    pub timeout: Duration,
    /// Failures in a row after which it is unhealthy. At least 1.
    pub unhealthy_threshold: u32,
    /// Successes in a row after which it is healthy again. At least 1.
    pub healthy_threshold: u32,
    /// Whether a connection is kept for the next check. Default on.
    pub reuse_connection: bool,
    /// Whether a success ends an ejection (Envoy's `successful_active_health_check_uneject_host`).
    /// Default on.
    pub uneject: bool,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: Probe::Tcp(TcpProbe::default()),
            port: None,
            interval: Duration::from_secs(10),
            no_traffic_interval: Duration::from_secs(60),
            jitter_percent: 10,
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            reuse_connection: true,
            uneject: true,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A request over HTTP/1.1.
    Http(HttpProbe),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcProbe),
    /// A connection, and what is said on it.
    Tcp(TcpProbe),
}

impl Probe {
    /// Its name in the configuration.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Grpc(_) => "grpc",
            Self::Tcp(_) => "tcp",
        }
    }
}

/// An HTTP check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HttpProbe {
    /// Path, without query.
    pub path: String,
    /// `Host`; none: the service's name.
    pub host: Option<String>,
    /// Method. Default GET.
    pub method: String,
    /// Statuses that are well, as inclusive ranges. Empty: 200.
    pub statuses: Vec<(u16, u16)>,
    /// Other statuses that count towards the threshold instead of deciding at once.
    pub retriable: Vec<(u16, u16)>,
}

impl Default for HttpProbe {
    fn default() -> Self {
        Self {
            path: "/".to_owned(),
            host: None,
            method: "GET".to_owned(),
            statuses: Vec::new(),
            retriable: Vec::new(),
        }
    }
}

/// A gRPC check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct GrpcProbe {
    /// The service that is asked about; empty: the server as a whole.
    pub service: String,
    /// `:authority`; none: the service's name.
    pub authority: Option<String>,
}

/// A TCP check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct TcpProbe {
    /// What is sent; empty: nothing.
    pub send: String,
    /// What must come in the first 4 KiB of the answer; empty: a connection is enough.
    pub expect: String,
}
