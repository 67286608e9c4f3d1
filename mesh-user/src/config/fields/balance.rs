//! Balancing and locality.

use std::time::Duration;

use super::{Absent, DAY, MILLI, Object, Shape, Text, field, needed};

static HASH_KEY: Shape = Shape::Text(Text::RateKey);
static REGION: Shape = Shape::Text(Text::TagValue);
static BALANCE_FORM: Shape = Shape::Object(&BALANCE);
/// Those that need no key.
static ALGORITHM: Shape = Shape::Choice(&[LEAST_REQUEST, ROUND_ROBIN, RANDOM, PEAK_EWMA]);

const LEAST_REQUEST: (&str, &str) = (
    "least-request",
    "of two random endpoints the one with fewer requests in flight",
);
const ROUND_ROBIN: (&str, &str) = ("round-robin", "in turn");
const RANDOM: (&str, &str) = ("random", "at random");
const PEAK_EWMA: (&str, &str) = (
    "peak-ewma",
    "of two random endpoints the one with the lower latency x requests in flight",
);

/// `balance`: an algorithm, or one with its parameters.
pub(super) const CHOICE: Shape = Shape::Either(&ALGORITHM, &BALANCE_FORM);

const SPAN: Shape = Shape::Text(Text::Duration(MILLI, DAY));

static BALANCE: Object = Object {
    name: "Balance",
    doc: "How an endpoint is chosen inside a version. A parameter of another algorithm is refused.",
    fields: &[
        needed(
            "algorithm",
            Shape::Choice(&[
                LEAST_REQUEST,
                ROUND_ROBIN,
                RANDOM,
                PEAK_EWMA,
                ("ring-hash", "by a key, on a ring of hashes"),
                ("maglev", "by a key, in Maglev's table"),
            ]),
            "The algorithm.",
        ),
        field(
            "hash",
            Shape::list(&HASH_KEY, 8),
            Absent::Means("needed by `ring-hash` and `maglev`"),
            "The key: these attributes together. Those that a request lacks are left out; one that \
             lacks all goes to any endpoint.",
        ),
        field(
            "seed",
            Shape::Int {
                min: 0,
                max: u32::MAX as i64,
            },
            Absent::Default("0", "all nodes choose alike"),
            "Seed of the hashes: nodes with the same seed and endpoints choose the same endpoint for \
             a key.",
        ),
        field(
            "ring-min",
            Shape::Int {
                min: 1,
                max: 8_388_608,
            },
            Absent::Default("1024", "as Envoy"),
            "`ring-hash`: fewest entries of the ring.",
        ),
        field(
            "ring-max",
            Shape::Int {
                min: 1,
                max: 8_388_608,
            },
            Absent::Default("8388608", "as Envoy"),
            "`ring-hash`: most entries of the ring, 16 bytes each.",
        ),
        field(
            "table-size",
            Shape::Int {
                min: 3,
                max: 5_000_011,
            },
            Absent::Default("65537", "as Envoy"),
            "`maglev`: entries of the table, 4 bytes each: a prime, at least 100 times as many as \
             there are endpoints.",
        ),
        field(
            "bounded-load",
            Shape::Int {
                min: 100,
                max: 10_000,
            },
            Absent::Means("no bound"),
            "`ring-hash`, `maglev`: most requests in flight at an endpoint, in percent of the mean \
             for its weight; what comes above goes to the next endpoint. 120 to 200 is usual.",
        ),
        field(
            "bias-percent",
            Shape::Int { min: 0, max: 1000 },
            Absent::Default("100", "as Envoy"),
            "`least-request`: b in the effective weight, weight / (requests in flight + 1)^(b/100). \
             0: weights alone.",
        ),
        field(
            "decay",
            Shape::Text(Text::Duration(Duration::from_millis(100), DAY)),
            Absent::Default("10s", "as Linkerd"),
            "`peak-ewma`: time constant with which an estimate of latency falls.",
        ),
        field(
            "start",
            SPAN,
            Absent::Default("30ms", "as Linkerd"),
            "`peak-ewma`: estimate of an endpoint that nobody has asked yet.",
        ),
        field(
            "penalty",
            SPAN,
            Absent::Default("5s", "as Linkerd"),
            "`peak-ewma`: what a failed attempt (5xx, 429, reset, time-out) counts as, unless its \
             answer has a `Retry-After`, which counts up to 300 s.",
        ),
        field(
            "slow-start",
            Shape::Object(&SLOW_START),
            Absent::Means("an endpoint has its whole weight at once"),
            "`round-robin`, `least-request`: an endpoint that appeared or became healthy begins with \
             less than its weight.",
        ),
        field(
            "panic-threshold",
            Shape::Int { min: 0, max: 100 },
            Absent::Means("50 where health checks run, as Envoy; else 0"),
            "Below this healthy share in percent all endpoints that are ready are used, sick and \
             ejected ones too. 0: never; 503 when none is healthy.",
        ),
    ],
    groups: &[],
};

static SLOW_START: Object = Object {
    name: "SlowStart",
    doc: "Weight x max(min-percent, (age / window)^(100 / aggression-percent)), as Envoy.",
    fields: &[
        needed("window", SPAN, "Until the endpoint has its whole weight."),
        field(
            "aggression-percent",
            Shape::Int {
                min: 1,
                max: 10_000,
            },
            Absent::Default("100", "as Envoy: linear"),
            "More is faster at first.",
        ),
        field(
            "min-percent",
            Shape::Int { min: 1, max: 100 },
            Absent::Default("10", "as Envoy"),
            "Smallest share of the weight.",
        ),
    ],
    groups: &[],
};

/// `locality`.
pub(super) static LOCALITY: Object = Object {
    name: "Locality",
    doc: "Which endpoints are asked first: those with the lowest `priority`, and among these the \
          nearest to this node. The others get what the first have no healthy endpoints for.",
    fields: &[
        field(
            "prefer",
            Shape::Choice(&[
                ("region", "the same region first"),
                ("zone", "the same zone, then the same region"),
                ("subzone", "the same subzone, then zone, then region"),
            ]),
            Absent::Means("priorities alone decide"),
            "The finest level at which nearness to `agent.locality` counts. Without that setting \
             all are equally near.",
        ),
        field(
            "failover",
            Shape::list(&REGION, 64),
            Absent::Means("other regions come last, together"),
            "Other regions, in the order in which they step in.",
        ),
        field(
            "over-provisioning",
            Shape::Int {
                min: 100,
                max: 1000,
            },
            Absent::Default("140", "as Envoy"),
            "A priority's capacity is so many percent of its healthy share, at most all.",
        ),
    ],
    groups: &[],
};
