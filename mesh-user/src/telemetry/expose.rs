//! `/metrics`: the OpenMetrics text, from our sums and prometheus-client's encoder.

use std::{fmt, sync::Arc};

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{
    LimitSample, ShieldSample, Spoken, Telemetry,
    health::Numbers,
    kernel::{EVENTS, KernelCounts, Labels},
    local::{plain_numbers, plain_sums, request_numbers, tcp_numbers},
    metrics::{self, BYTE_BOUNDS, DURATION_BOUNDS_US, Kind, Metric},
    process::{self, Process},
    series::{LabelSet, Sums},
};
use crate::policy::{Reject, Snapshot, action};

/// Most versions whose breakers are shown: 8 lines each.
pub const BREAKERS_MAX: usize = 1_024;

/// What others know, at the time of a scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Generation of the snapshot in force.
    pub generation: u64,
    /// Whether the agent is ready.
    pub ready: bool,
    /// When the configuration was last taken over, in seconds since 1970.
    pub reload_seconds: Option<f64>,
    /// Whether the newest configuration is in force.
    pub reload_good: bool,
    /// Workloads by state.
    pub workloads: Vec<(String, u64)>,
    /// Breakers by version.
    pub breakers: Vec<Breaker>,
    /// Versions whose breakers are not in `breakers`.
    pub breakers_omitted: usize,
    /// Rate limits.
    pub limits: LimitSample,
    /// The kernel's counters, by reason.
    pub kernel: Vec<(String, u64)>,
    /// Maps: name, entries where they can be counted, capacity.
    pub maps: Vec<(String, Option<u64>, u64)>,
    /// The shield; none: there is none.
    pub shield: Option<ShieldSample>,
}

/// The breaker of one version.
#[derive(Clone, Debug)]
pub struct Breaker {
    /// Namespace, service, port and version.
    pub labels: [String; 4],
    /// Connections, pending, requests, retries: in use and limit.
    pub resources: [(&'static str, u32, u32); 4],
    /// Picks in panic.
    pub panics: u64,
}

impl Scrape {
    /// Takes the breakers and rate limits of a snapshot over, [`BREAKERS_MAX`] at most.
    pub fn breakers(&mut self, snapshot: &Snapshot) {
        self.generation = snapshot.generation;
        self.limits = LimitSample::of(snapshot);
        // A workload without an inbound rule has no caps.
        let capped = snapshot.versions.iter().filter(|version| {
            let port = snapshot.ports.get(version.port.0 as usize);
            let inbound = port.and_then(|port| port.inbound.as_ref());
            inbound.is_none_or(|inbound| inbound.rule.is_some())
        });
        self.breakers_omitted = capped.clone().count().saturating_sub(BREAKERS_MAX);
        self.breakers = capped
            .take(BREAKERS_MAX)
            .filter_map(|version| {
                let port = snapshot.ports.get(version.port.0 as usize)?;
                let (gauges, caps) = (version.breaker.gauges(), version.breaker.caps());
                Some(Breaker {
                    labels: [
                        port.namespace.to_string(),
                        port.service.to_string(),
                        port.name.to_string(),
                        version.name.to_string(),
                    ],
                    resources: [
                        ("connections", gauges.connections, caps.max_connections),
                        ("pending", gauges.pending, caps.max_pending),
                        ("requests", gauges.requests, caps.max_requests),
                        ("retries", gauges.retries, caps.max_retries),
                    ],
                    panics: version.panic_picks(),
                })
            })
            .collect();
    }
}

/// Writes the text of a scrape.
pub(super) fn write(
    telemetry: &Telemetry,
    scrape: Option<&Scrape>,
    out: &mut dyn fmt::Write,
) -> fmt::Result {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected::new(telemetry, scrape.cloned())));
    text::encode(&mut Unsized(out), &registry)
}

/// The encoder wants a sized writer.
struct Unsized<'a>(&'a mut dyn fmt::Write);

impl fmt::Write for Unsized<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(text)
    }
}

/// All numbers of one moment: taken first, so that no lock is held while text is made.
#[derive(Debug)]
struct Collected {
    requests: Sums<{ request_numbers::LEN }>,
    tcp: Sums<{ tcp_numbers::LEN }>,
    kernel: Vec<(Labels, KernelCounts)>,
    health: Numbers,
    plain: [u64; plain_numbers::LEN],
    ejections: [u64; 3],
    sources_lost: u64,
    mirrors: Vec<(Arc<str>, &'static str, u64)>,
    handshakes: Vec<([&'static str; 2], f64)>,
    files_refused: u64,
    panics: Vec<(&'static str, u64)>,
    log_lost: u64,
    process: Process,
    scrape: Option<Scrape>,
}

impl Collected {
    fn new(telemetry: &Telemetry, scrape: Option<Scrape>) -> Self {
        Self {
            requests: telemetry.requests.sums(),
            tcp: telemetry.tcp.sums(),
            kernel: telemetry.kernel.sums(),
            health: telemetry.health.numbers(),
            plain: plain_sums(&telemetry.plain),
            ejections: telemetry.ejections(),
            sources_lost: telemetry
                .sources_lost
                .load(std::sync::atomic::Ordering::Relaxed),
            mirrors: telemetry.mirrors.sums(),
            handshakes: telemetry.tls.sums(),
            files_refused: telemetry.tls.refused(),
            panics: telemetry.panics(),
            log_lost: telemetry.log.lost(),
            process: process::read(),
            scrape,
        }
    }
}

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut to = Writer { encoder };
        self.requests(&mut to)?;
        self.tcp(&mut to)?;
        self.kernel(&mut to)?;
        self.health(&mut to)?;
        self.plain(&mut to)?;
        self.process(&mut to)?;
        self.scrape
            .as_ref()
            .map_or(Ok(()), |scrape| scrape.encode(&mut to))
    }
}

impl Collected {
    fn requests(&self, to: &mut Writer<'_>) -> fmt::Result {
        use request_numbers::{BYTES_IN, BYTES_OUT, COUNT, DURATION};
        let sums = &self.requests;
        to.counters(
            &metrics::REQUESTS,
            sums.iter().map(|(labels, sum)| (labels, sum[COUNT])),
        )?;
        // Counted in microseconds, shown in milliseconds.
        let millis = DURATION_BOUNDS_US.map(|bound| bound as f64 / 1_000.0);
        to.histograms(&metrics::REQUEST_DURATION, sums, DURATION, &millis, 1_000.0)?;
        let bytes = BYTE_BOUNDS.map(|bound| bound as f64);
        to.histograms(&metrics::REQUEST_BYTES, sums, BYTES_IN, &bytes, 1.0)?;
        to.histograms(&metrics::RESPONSE_BYTES, sums, BYTES_OUT, &bytes, 1.0)
    }

    fn tcp(&self, to: &mut Writer<'_>) -> fmt::Result {
        for (metric, number) in [
            (&metrics::TCP_OPENED, tcp_numbers::OPENED),
            (&metrics::TCP_CLOSED, tcp_numbers::CLOSED),
            (&metrics::TCP_SENT, tcp_numbers::BYTES_OUT),
            (&metrics::TCP_RECEIVED, tcp_numbers::BYTES_IN),
        ] {
            to.counters(
                metric,
                self.tcp.iter().map(|(labels, sum)| (labels, sum[number])),
            )?;
        }
        Ok(())
    }

    fn kernel(&self, to: &mut Writer<'_>) -> fmt::Result {
        let row = |labels: &Labels, last: &'static str, value: u64| {
            let [namespace, service, port, version] = labels.clone();
            (
                [namespace, service, port, version, last.into()],
                value as f64,
            )
        };
        let events = self.kernel.iter().flat_map(|(labels, counts)| {
            let values = EVENTS.into_iter().zip(counts.events());
            values.map(move |(event, value)| row(labels, event, value))
        });
        to.values(&metrics::KERNEL_CONNECTIONS, events)?;
        let bytes = self.kernel.iter().flat_map(|(labels, counts)| {
            [("sent", counts.sent), ("received", counts.received)]
                .map(|(direction, value)| row(labels, direction, value))
        });
        to.values(&metrics::KERNEL_BYTES, bytes)
    }

    fn health(&self, to: &mut Writer<'_>) -> fmt::Result {
        let results = self.health.results.iter();
        let results = results.map(|(((namespace, service), result), count)| {
            ([&**namespace, &**service, *result], *count as f64)
        });
        to.values(&metrics::HEALTH_CHECKS, results)?;
        let unhealthy = self.health.unhealthy.iter();
        let unhealthy = unhealthy
            .map(|((namespace, service), count)| ([&**namespace, &**service], *count as f64));
        to.values(&metrics::UNHEALTHY, unhealthy)
    }

    fn plain(&self, to: &mut Writer<'_>) -> fmt::Result {
        let by_protocol = |first: usize| {
            Spoken::ALL
                .iter()
                .map(move |spoken| (spoken.label(), first + *spoken as usize))
        };
        for (metric, first) in [
            (&metrics::CONNECTIONS_OPENED, plain_numbers::OPENED),
            (&metrics::CONNECTIONS_CLOSED, plain_numbers::CLOSED),
        ] {
            to.named(
                metric,
                by_protocol(first).map(|(name, index)| (name, self.plain[index])),
            )?;
        }
        let rejects = Reject::ALL.iter().map(|reject| {
            (
                reject.label(),
                self.plain[plain_numbers::REJECTS + *reject as usize],
            )
        });
        to.named(&metrics::REJECTS, rejects)?;
        let actions = action::Kind::ALL.map(|kind| {
            let count = self.plain[plain_numbers::ACTIONS + kind as usize];
            (kind.label(), count)
        });
        to.named(&metrics::ACTIONS, actions)?;
        to.single(&metrics::RETRIES, self.plain[plain_numbers::RETRIES])?;
        to.single(&metrics::SOURCES_LOST, self.sources_lost)?;
        let mirrors = self.mirrors.iter().map(|(service, result, count)| {
            ([Arc::clone(service), Arc::from(*result)], *count as f64)
        });
        to.values(&metrics::MIRRORS, mirrors)?;
        let [ejected, skipped, returned] = self.ejections;
        to.named(
            &metrics::EJECTIONS,
            [
                ("ejected", ejected),
                ("skipped", skipped),
                ("returned", returned),
            ],
        )?;
        to.values(&metrics::TLS_HANDSHAKES, self.handshakes.iter().copied())?;
        to.single(&metrics::TLS_FILES_REFUSED, self.files_refused)?;
        to.named(&metrics::TASK_PANICS, self.panics.iter().copied())?;
        to.single(&metrics::LOG_LOST, self.log_lost)?;
        let series = [("requests", self.requests.len()), ("tcp", self.tcp.len())];
        to.named(
            &metrics::SERIES,
            series.map(|(name, count)| (name, count as u64)),
        )
    }

    fn process(&self, to: &mut Writer<'_>) -> fmt::Result {
        let process = &self.process;
        let build = [env!("CARGO_PKG_VERSION"), std::env::consts::ARCH];
        to.values(&metrics::BUILD_INFO, [(build.as_slice(), 1.0)])?;
        let integer = |value: Option<u64>| value.map(|value| value as f64);
        for (metric, value) in [
            (&metrics::PROCESS_CPU, process.cpu_seconds),
            (&metrics::PROCESS_FDS, integer(process.open_fds)),
            (&metrics::PROCESS_FDS_MAX, integer(process.max_fds)),
            (&metrics::PROCESS_VIRTUAL, integer(process.virtual_bytes)),
            (&metrics::PROCESS_RESIDENT, integer(process.resident_bytes)),
            (&metrics::PROCESS_THREADS, integer(process.threads)),
            (&metrics::PROCESS_START, process.start_seconds),
        ] {
            to.values(metric, value.map(|value| (&[] as &[&str], value)))?;
        }
        Ok(())
    }
}

impl Scrape {
    fn encode(&self, to: &mut Writer<'_>) -> fmt::Result {
        to.single(&metrics::GENERATION, self.generation)?;
        to.single(&metrics::READY, u64::from(self.ready))?;
        to.single(&metrics::RELOAD_GOOD, u64::from(self.reload_good))?;
        to.values(
            &metrics::RELOAD_TIME,
            self.reload_seconds.map(|at| (&[] as &[&str], at)),
        )?;
        to.named(
            &metrics::WORKLOADS,
            self.workloads.iter().map(|(state, n)| (&**state, *n)),
        )?;
        self.encode_breakers(to)?;
        self.limits.encode(to)?;
        self.encode_kernel(to)?;
        self.shield
            .as_ref()
            .map_or(Ok(()), |shield| shield.encode(to))
    }

    fn encode_breakers(&self, to: &mut Writer<'_>) -> fmt::Result {
        type Take = fn(&(&'static str, u32, u32)) -> u32;
        let families: [(&Metric, Take); 2] = [
            (&metrics::BREAKER_IN_USE, |resource| resource.1),
            (&metrics::BREAKER_LIMIT, |resource| resource.2),
        ];
        for (metric, take) in families {
            let rows = self.breakers.iter().flat_map(|breaker| {
                breaker.resources.iter().map(move |resource| {
                    let [namespace, service, port, version] = &breaker.labels;
                    let labels = [&**namespace, service, port, version, resource.0];
                    (labels, f64::from(take(resource)))
                })
            });
            to.values(metric, rows)?;
        }
        // Most versions know no panic: no line for them.
        let panics = self.breakers.iter().filter(|breaker| breaker.panics > 0);
        let rows = panics.map(|breaker| (breaker.labels.as_slice(), breaker.panics as f64));
        to.values(&metrics::PANICS, rows)?;
        to.single(&metrics::BREAKERS_OMITTED, self.breakers_omitted as u64)
    }

    fn encode_kernel(&self, to: &mut Writer<'_>) -> fmt::Result {
        for metric in [
            &metrics::BPF_REDIRECTS,
            &metrics::BPF_STEER,
            &metrics::BPF_FLOWS,
        ] {
            let rows = self.kernel.iter().filter(|(reason, _)| {
                kernel_metric(reason).is_some_and(|of| of.name == metric.name)
            });
            to.named(metric, rows.map(|(reason, count)| (&**reason, *count)))?;
        }
        let lost = self
            .kernel
            .iter()
            .find(|(reason, _)| kernel_metric(reason).is_none());
        if let Some((_, count)) = lost {
            to.single(&metrics::BPF_EVENTS_LOST, *count)?;
        }
        let entries = self
            .maps
            .iter()
            .filter_map(|(map, entries, _)| Some((&**map, (*entries)?)));
        to.named(&metrics::BPF_ENTRIES, entries)?;
        to.named(
            &metrics::BPF_CAPACITY,
            self.maps.iter().map(|(map, _, n)| (&**map, *n)),
        )
    }
}

/// Which metric counts a kernel reason; none for lost events, which have their own.
fn kernel_metric(reason: &str) -> Option<&'static Metric> {
    if reason == "event_lost" {
        None
    } else if reason.starts_with("steer_") {
        Some(&metrics::BPF_STEER)
    } else if reason.starts_with("flow_") || reason.starts_with("proxy_flow_") {
        Some(&metrics::BPF_FLOWS)
    } else {
        Some(&metrics::BPF_REDIRECTS)
    }
}

/// Writes metrics as the table describes them.
pub(super) struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Writer<'_> {
    fn family(&mut self, metric: &Metric) -> Result<MetricEncoder<'_>, fmt::Error> {
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        self.encoder
            .encode_descriptor(metric.family(), metric.help, None, kind)
    }

    /// Rows with one value for each label.
    pub(super) fn values<L: AsRef<[S]>, S: AsRef<str>>(
        &mut self,
        metric: &Metric,
        rows: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut family = self.family(metric)?;
        let mut rows = rows.into_iter();
        if metric.labels.is_empty() {
            // The encoder would write empty braces.
            return rows
                .next()
                .map_or(Ok(()), |(_, value)| encode(metric.kind, family, value));
        }
        for (values, value) in rows {
            let labels = pairs(metric, values.as_ref().iter().map(AsRef::as_ref));
            encode(metric.kind, family.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    /// Rows with one label.
    pub(super) fn named<'n>(
        &mut self,
        metric: &Metric,
        rows: impl IntoIterator<Item = (&'n str, u64)>,
    ) -> fmt::Result {
        self.values(
            metric,
            rows.into_iter().map(|(name, value)| ([name], value as f64)),
        )
    }

    pub(super) fn single(&mut self, metric: &Metric, value: u64) -> fmt::Result {
        self.values(metric, [(&[] as &[&str], value as f64)])
    }

    fn counters<'s>(
        &mut self,
        metric: &Metric,
        rows: impl Iterator<Item = (&'s LabelSet, u64)>,
    ) -> fmt::Result {
        self.values(
            metric,
            rows.map(|(labels, value)| (&labels.0, value as f64)),
        )
    }

    /// `first..` of the numbers are the buckets, then the sum, which is divided by `scale`.
    fn histograms<const N: usize, const B: usize>(
        &mut self,
        metric: &Metric,
        sums: &Sums<N>,
        first: usize,
        bounds: &[f64; B],
        scale: f64,
    ) -> fmt::Result {
        let mut family = self.family(metric)?;
        for (labels, numbers) in sums {
            let counts = &numbers[first..=first + B];
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            let labels = pairs(metric, labels.0.iter().map(AsRef::as_ref));
            family
                .encode_family(&labels)?
                .encode_histogram::<[(&str, &str); 0]>(
                    numbers[first + B + 1] as f64 / scale,
                    counts.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

fn encode(kind: Kind, encoder: MetricEncoder<'_>, value: f64) -> fmt::Result {
    // Whole numbers below 2^53 print as such; process_cpu_seconds_total is not whole.
    match kind {
        Kind::Counter if value.fract() == 0.0 => ConstCounter::new(value as u64).encode(encoder),
        Kind::Counter => ConstCounter::new(value).encode(encoder),
        Kind::Gauge | Kind::Histogram if value.fract() == 0.0 => {
            ConstGauge::new(value as i64).encode(encoder)
        }
        Kind::Gauge | Kind::Histogram => ConstGauge::new(value).encode(encoder),
    }
}

fn pairs<'v>(
    metric: &Metric,
    values: impl ExactSizeIterator<Item = &'v str>,
) -> Vec<(&'static str, &'v str)> {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    metric.labels.iter().copied().zip(values).collect()
}
