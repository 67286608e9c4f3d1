//! Which columns each list has. Names of fields are those of the row structs; a test renders a
//! row of each, so that a renamed field can't turn into a column of dashes.

use serde_json::Value;

use super::output::{Column, age, cell};

macro_rules! columns {
    ($(#[doc = $doc:literal] $name:ident = [$($head:literal $kind:tt $text:expr),+ $(,)?];)+) => {
        $(
            #[doc = $doc]
            pub(super) const $name: &[Column] = &[$(columns!(@ $head $kind $text)),+];
        )+
    };
    (@ $head:literal left $text:expr) => { columns!(@@ $head, $text, false, false) };
    (@ $head:literal right $text:expr) => { columns!(@@ $head, $text, false, true) };
    (@ $head:literal wide $text:expr) => { columns!(@@ $head, $text, true, false) };
    (@ $head:literal wide_right $text:expr) => { columns!(@@ $head, $text, true, true) };
    (@@ $head:literal, $text:expr, $wide:literal, $right:literal) => {
        Column { head: $head, text: $text, wide: $wide, right: $right }
    };
}

columns! {
    /// `mesh bpf redirect list`.
    BPF_REDIRECT = [
        "POD" right |row| cell(&row["pod_id"]),
        "WORKLOAD" left |row| cell(&row["workload"]),
        "DIRECTION" left |row| cell(&row["direction"]),
        "SHARD" right |row| cell(&row["shard"]),
        "LISTENER" right |row| cell(&row["listener"]),
        "STATE" left |row| cell(&row["state"]),
    ];
    /// `mesh bpf workloads list`.
    BPF_WORKLOADS = [
        "POD" right |row| cell(&row["pod_id"]),
        "WORKLOAD" left |row| cell(&row["workload"]),
        "MODE" left |row| cell(&row["mode"]),
        "FAILURE" left |row| cell(&row["failure"]),
        "ADDRESSES" left |row| cell(&row["addresses"]),
        "NETNS" wide_right |row| cell(&row["netns"]),
    ];
    /// `mesh bpf services list`.
    BPF_SERVICES = [
        "ADDRESS" left |row| cell(&row["address"]),
        "SERVICE" right |row| cell(&row["service_id"]),
        "NAME" left |row| cell(&row["service"]),
        "DECISION" left |row| cell(&row["decision"]),
        "SLOTS" right |row| cell(&row["slots"]),
        "ROUTABLE" left |row| cell(&row["routable"]),
        "BACKENDS" left backends,
    ];
    /// `mesh bpf endpoints list`.
    BPF_ENDPOINTS = [
        "SERVICE" left |row| cell(&row["service"]),
        "VERSION" left |row| cell(&row["version"]),
        "ENDPOINT" left |row| cell(&row["address"]),
        "STATE" left |row| cell(&row["state"]),
        "SLOTS" right |row| cell(&row["slots"]),
        "ACTIVE" right |row| cell(&row["active"]),
        "CAP" right held,
        "OPENED" right |row| cell(&row["opened"]),
        "ESTABLISHED" right |row| cell(&row["established"]),
        "FAILED" right |row| cell(&row["failed"]),
        "BYTES-OUT" right |row| cell(&row["bytes_out"]),
        "BYTES-IN" right |row| cell(&row["bytes_in"]),
        "ABANDONED" wide_right |row| cell(&row["abandoned"]),
        "CLOSED" wide_right |row| cell(&row["closed"]),
        "CAP-REFUSED" wide_right |row| cell(&row["cap_refused"]),
    ];
    /// `mesh bpf inbound list`.
    BPF_INBOUND = [
        "POD" right |row| cell(&row["pod_id"]),
        "WORKLOAD" left |row| cell(&row["workload"]),
        "PORT" right |row| cell(&row["port"]),
        "ACTION" left |row| cell(&row["action"]),
    ];
    /// `mesh bpf conns list`.
    BPF_CONNS = [
        "LEG" left |row| cell(&row["leg"]),
        "WORKLOAD" left |row| cell(&row["workload"]),
        "SOURCE" left |row| cell(&row["source"]),
        "DESTINATION" left |row| cell(&row["destination"]),
        "ASKED" left |row| cell(&row["asked"]),
        "SERVICE" left |row| cell(&row["service"]),
        "VERDICT" left |row| cell(&row["verdict"]),
        "VERSION" left |row| cell(&row["version"]),
        "ENDPOINT" left |row| cell(&row["endpoint"]),
        "STATE" left |row| cell(&row["state"]),
        "OUT" right |row| row["bytes_out"].as_u64().map_or_else(|| "-".into(), bytes),
        "IN" right |row| row["bytes_in"].as_u64().map_or_else(|| "-".into(), bytes),
        "AGE" right |row| row["age_s"].as_f64().map_or_else(|| "-".into(), age),
        "RTT" right |row| row["rtt_ms"].as_f64().map_or_else(|| "-".into(), millis),
        "POD" wide_right |row| cell(&row["pod_id"]),
        "TGID" wide_right |row| cell(&row["tgid"]),
    ];
    /// `mesh bpf stats list`.
    BPF_STATS = [
        "REASON" left |row| cell(&row["reason"]),
        "COUNT" right |row| cell(&row["count"]),
        "REFUSES" left |row| cell(&row["refusal"]),
    ];
    /// `mesh bpf maps list`.
    BPF_MAPS = [
        "MAP" left |row| cell(&row["map"]),
        "ENTRIES" right |row| cell(&row["entries"]),
        "CAPACITY" right |row| cell(&row["capacity"]),
        "USED" right used,
    ];
    /// `mesh bpf progs`.
    BPF_PROGS = [
        "PIN" left |row| cell(&row["pin"]),
        "PROGRAM" left |row| cell(&row["program"]),
        "TYPE" left |row| cell(&row["kind"]),
        "ATTACHED" left |row| cell(&row["attached"]),
        "PROG-ID" wide_right |row| cell(&row["prog_id"]),
        "LINK-ID" wide_right |row| cell(&row["link_id"]),
        "INSNS" wide_right |row| cell(&row["verified_insns"]),
    ];
    /// `mesh config services`.
    SERVICES = [
        "NAMESPACE" left |row| cell(&row["namespace"]),
        "SERVICE" left |row| cell(&row["service"]),
        "PORT" right |row| cell(&row["port"]),
        "PROTOCOL" left |row| {
            let protocol = cell(&row["protocol"]);
            match row["tls"].as_bool() {
                Some(true) => format!("{protocol} in tls"),
                _ => protocol,
            }
        },
        "PATH" left |row| cell(&row["path"]),
        "REASON" left |row| cell(&row["reason"]),
        "RULES" right |row| cell(&row["rules"]),
        "VERSIONS" left |row| cell(&row["versions"]),
        "USABLE" right |row| of(row),
        "ADDRESSES" left |row| cell(&row["addresses"]),
        "PORT-NAME" wide |row| cell(&row["port_name"]),
        "HOSTNAMES" wide |row| cell(&row["hostnames"]),
    ];
    /// `mesh config routes`.
    ROUTES = [
        "SERVICE" left |row| cell(&row["service"]),
        "PORT" right |row| cell(&row["port"]),
        "ORDER" right |row| cell(&row["order"]),
        "RULE" left |row| cell(&row["rule"]),
        "MATCH" left matches,
        "TARGETS" left targets,
        "ACTIONS" left actions,
        "TERMS" left |row| cell(&row["terms"]),
        "PRECEDENCE" wide_right |row| cell(&row["precedence"]),
    ];
    /// `mesh config endpoints`.
    ENDPOINTS = [
        "SERVICE" left |row| cell(&row["service"]),
        "PORT" right |row| cell(&row["port"]),
        "ADDRESS" left |row| cell(&row["address"]),
        "VERSIONS" left |row| cell(&row["versions"]),
        "STATE" left state,
        "IN-FLIGHT" right |row| cell(&row["in_flight"]),
        "REQUESTS" right |row| cell(&row["requests"]),
        "FAILURES" right |row| cell(&row["failures"]),
        "EJECTIONS" right |row| cell(&row["ejections"]),
        "CHECK" wide |row| or(&row["check"], "none"),
        "SKIPPED" wide_right |row| cell(&row["skipped"]),
        "WEIGHT" wide_right |row| cell(&row["weight"]),
        "PRIORITY" wide_right |row| cell(&row["priority"]),
        "LOCALITY" wide |row| or(&row["locality"], "unknown"),
        "TAGS" wide |row| cell(&row["tags"]),
        "IDENTITY" wide |row| cell(&row["identity"]),
    ];
    /// `mesh config policies`.
    POLICIES = [
        "SERVICE" left |row| cell(&row["service"]),
        "PORT" right |row| cell(&row["port"]),
        "VERSION" left |row| cell(&row["version"]),
        "FIELD" left |row| cell(&row["field"]),
        "VALUE" left |row| cell(&row["value"]),
        "FROM" left |row| cell(&row["from"]),
        "WHY" wide |row| cell(&row["reason"]),
    ];
    /// `mesh config gateway`.
    GATEWAY = [
        "KIND" left |row| cell(&row["kind"]),
        "NAMESPACE" left |row| cell(&row["namespace"]),
        "ROUTE" left |row| cell(&row["name"]),
        "PARENT" left parent,
        "ACCEPTED" left |row| condition(row, "Accepted"),
        "RESOLVED-REFS" left |row| condition(row, "ResolvedRefs"),
        "WHY" left why,
    ];
    /// Interfaces in `mesh shield status`.
    SHIELD_INTERFACES = [
        "INTERFACE" left |row| cell(&row["interface"]),
        "ATTACHED" left |row| cell(&row["attached"]),
        "WHY" left |row| cell(&row["why"]),
    ];
    /// Counters in `mesh shield status`.
    SHIELD_COUNTS = [
        "REASON" left |row| cell(&row["reason"]),
        "DROPS" left |row| cell(&row["drops"]),
        "PACKETS" right |row| cell(&row["packets"]),
        "BYTES" right |row| cell(&row["bytes"]),
    ];
    /// `mesh shield list`.
    SHIELD_RULES = [
        "RULE" left |row| cell(&row["rule"]),
        "ACTION" left |row| cell(&row["action"]),
        "ORIGIN" left |row| cell(&row["origin"]),
        "RANGES" right |row| cell(&row["prefixes"]),
        "PACKETS" right |row| cell(&row["packets"]),
        "BYTES" right |row| cell(&row["bytes"]),
        "ENDS-IN" right |row| row["expires_s"].as_f64().map_or_else(|| "-".into(), age),
    ];
    /// `mesh shield top`.
    SHIELD_SOURCES = [
        "SOURCE" left |row| cell(&row["source"]),
        "SYN-DROPPED" right |row| cell(&row["dropped"]),
        "SYN-PASSED" right |row| cell(&row["passed"]),
    ];
    /// Entries in `mesh shield check`.
    SHIELD_HOLDERS = [
        "RANGE" left |row| cell(&row["cidr"]),
        "ACTION" left |row| cell(&row["action"]),
        "RULE" left |row| cell(&row["rule"]),
        "ORIGIN" left |row| cell(&row["origin"]),
        "DECIDES" left |row| cell(&row["decides"]),
    ];
    /// Workloads in `mesh status`.
    WORKLOADS = [
        "WORKLOAD" left |row| cell(&row["key"]),
        "POD" right |row| cell(&row["pod_id"]),
        "STATE" left |row| cell(&row["state"]),
        "ERROR" left |row| cell(&row["error"]),
    ];
    /// `mesh check`.
    CHECKS = [
        "CHECK" left |row| cell(&row["name"]),
        "RESULT" left |row| check_result(row).into(),
        "FOUND" left |row| cell(&row["found"]),
        "REMEDY" wide |row| cell(&row["remedy"]),
    ];
}

/// `ok`, `FAIL`, or `warn` for what the agent can do without.
pub(super) fn check_result(row: &Value) -> &'static str {
    match (row["ok"].as_bool(), row["required"].as_bool()) {
        (Some(true), _) => "ok",
        (_, Some(false)) => "warn",
        _ => "FAIL",
    }
}

/// `10.0.0.1:80 x3,10.0.0.2:80 x1`.
fn backends(row: &Value) -> String {
    let Some(backends) = row["backends"].as_array().filter(|list| !list.is_empty()) else {
        return "-".into();
    };
    let shown: Vec<String> = backends
        .iter()
        .map(|pair| format!("{} x{}", cell(&pair[0]), cell(&pair[1])))
        .collect();
    shown.join(",")
}

/// Places of the version's cap that are held, of all: `7/100`.
fn held(row: &Value) -> String {
    if row["cap_limit"].is_null() {
        return "-".into();
    }
    format!("{}/{}", cell(&row["cap_active"]), cell(&row["cap_limit"]))
}

fn used(row: &Value) -> String {
    match (row["entries"].as_f64(), row["capacity"].as_f64()) {
        (Some(entries), Some(capacity)) if capacity > 0.0 => {
            format!("{:.1}%", entries / capacity * 100.0)
        }
        _ => "-".into(),
    }
}

/// `812`, `4.1K`, `3.2M`, `1.0G`: powers of 1,024.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["", "K", "M", "G"] {
        if value < 1_024.0 {
            return if unit.is_empty() {
                count.to_string()
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1_024.0;
    }
    format!("{value:.1}T")
}

/// `0.043ms`.
fn millis(value: f64) -> String {
    format!("{value:.3}ms")
}

/// A value, or what its absence means.
fn or(value: &Value, absent: &str) -> String {
    match value {
        Value::Null => absent.to_owned(),
        value => cell(value),
    }
}

/// Usable of all endpoints: `2/3`.
fn of(row: &Value) -> String {
    format!("{}/{}", cell(&row["usable"]), cell(&row["endpoints"]))
}

/// Alternatives with a bar between them; no condition at all is said, not left out.
fn matches(row: &Value) -> String {
    match row["matches"].as_array() {
        Some(list) if !list.is_empty() => list.iter().map(cell).collect::<Vec<_>>().join(" | "),
        _ => "always".into(),
    }
}

/// `v1 90% (2/2),v2 10% (0/1)`.
pub(super) fn targets(row: &Value) -> String {
    match row["targets"].as_array() {
        Some(list) if !list.is_empty() => list.iter().map(target).collect::<Vec<_>>().join(", "),
        _ => "-".into(),
    }
}

/// What the rule does, and what is done on the way to single targets: `v2: ...`.
fn actions(row: &Value) -> String {
    let texts = |of: &Value| of.as_array().into_iter().flatten().map(cell).collect();
    let mut all: Vec<String> = texts(&row["chosen_by"]);
    all.extend::<Vec<String>>(texts(&row["actions"]));
    for target in row["targets"].as_array().into_iter().flatten() {
        let own: Vec<String> = texts(&target["actions"]);
        if !own.is_empty() {
            all.push(format!("{}: {}", cell(&target["version"]), own.join(", ")));
        }
    }
    if all.is_empty() {
        "-".into()
    } else {
        all.join("; ")
    }
}

fn target(target: &Value) -> String {
    let share = target["share"].as_f64().unwrap_or(0.0);
    // Two places at most, and none for whole numbers.
    let share = (share * 100.0).round() / 100.0;
    if target["invalid"] == true {
        return format!("invalid {share}%");
    }
    let version = cell(&target["version"]);
    match target["service"].as_str() {
        Some(service) => format!("{service} {version} {share}% ({})", of(target)),
        None => format!("{version} {share}% ({})", of(target)),
    }
}

/// The state, with the time that is left when it is ejected.
fn state(row: &Value) -> String {
    match row["ejected_for_ms"].as_f64() {
        Some(millis) => format!("{} ({})", cell(&row["state"]), age(millis / 1_000.0)),
        None => cell(&row["state"]),
    }
}

/// `shop/reviews`, with `:80` or `:http` when the route says so.
fn parent(row: &Value) -> String {
    let parent = &row["parent"];
    let mut out = format!("{}/{}", cell(&parent["namespace"]), cell(&parent["name"]));
    for field in ["port", "section_name"] {
        if !parent[field].is_null() {
            out.push_str(&format!(":{}", cell(&parent[field])));
        }
    }
    out
}

fn conditions(row: &Value) -> impl Iterator<Item = &Value> {
    row["conditions"].as_array().into_iter().flatten()
}

/// `True`, or the reason why not.
fn condition(row: &Value, kind: &str) -> String {
    match conditions(row).find(|condition| condition["type"] == kind) {
        Some(condition) if condition["status"] == true => "True".to_owned(),
        Some(condition) => cell(&condition["reason"]),
        None => "-".to_owned(),
    }
}

/// The first condition that is not as it should be.
fn why(row: &Value) -> String {
    let odd = |condition: &&Value| {
        let good = condition["type"] != "PartiallyInvalid";
        condition["status"] != good
    };
    conditions(row)
        .find(odd)
        .map_or_else(|| "-".to_owned(), |condition| cell(&condition["message"]))
}
