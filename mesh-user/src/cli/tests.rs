use std::{fs, io, sync::atomic::Ordering::SeqCst};

use clap::Parser as _;
use serde::Serialize;

use super::{
    args::{BpfVerb, OutputArgs, PlainFormat},
    output::Column,
    *,
};
use crate::{
    admin::{
        Agent as _, document,
        tests::{FakeAgent, Running},
    },
    kernel::{probe::Check, view},
};

const CONFIG: &str = r#"
apiVersion: mesh/v1alpha1
kind: MeshConfig
services:
  - name: reviews
    hostnames: [reviews]
    addresses: [10.96.0.10]
    ports: [{name: http, number: 80, target: 9080, protocol: http}]
    versions: {v1: {version: v1}, v2: {version: v2}}
    endpoints:
      - {address: 10.244.1.5, tags: {version: v1}}
rules:
  - service: reviews
    match: [{headers: {x-user: {exact: beta}}}]
    route: [{version: v1}]
  - service: reviews
    match: [{path: {prefix: /v2}}]
    route: [{version: v2}]
workloads:
  - {name: client, netns: /run/netns/client}
"#;

/// What a command line printed, and how it ended.
#[derive(Debug)]
struct Ran {
    exit: u8,
    out: String,
    err: String,
}

fn mesh(args: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    // An instance that nobody has, whatever runs on this machine.
    let all = ["mesh", "--instance", "ops-unit-nobody"]
        .iter()
        .chain(args)
        .copied();
    let exit = run(all, &mut out, &mut err);
    Ran {
        exit,
        out: text(out),
        err: text(err),
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

/// Runs one verb with buffers to write to.
fn verb(
    f: impl FnOnce(&mut Io<'_>) -> anyhow::Result<Exit>,
) -> (anyhow::Result<Exit>, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = f(&mut Io {
        out: &mut out,
        err: &mut err,
        colour_out: false,
        colour_err: false,
    });
    (result, text(out), text(err))
}

const TABLE: OutputArgs = OutputArgs {
    output: Format::Table,
    no_headers: false,
};
const WIDE: OutputArgs = OutputArgs {
    output: Format::Wide,
    no_headers: false,
};

fn agent(running: &Running) -> Agent {
    Agent {
        instance: Instance::new("test").expect("a valid name"),
        socket: running.socket(),
    }
}

fn shown<T: Serialize>(args: OutputArgs, columns: &[Column], rows: &[T]) -> String {
    let document = document::list("TestList", rows).expect("rows are JSON");
    let mut out = Vec::new();
    output::list(&mut out, args, columns, &document).expect("memory takes everything");
    text(out)
}

/// A file that is removed at the end.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mesh-ops-{}-{name}", std::process::id()));
        fs::write(&path, content).expect("a temporary file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn every_column_of_kernel_rows_shows_its_field() {
    let workloads = [view::WorkloadRow {
        pod_id: 3,
        workload: "shop/client".into(),
        netns: 4_026,
        mode: "mark".into(),
        failure: "open".into(),
        addresses: vec![
            "10.0.0.3".parse().expect("ip"),
            "fd00::3".parse().expect("ip"),
        ],
    }];
    assert_eq!(
        shown(WIDE, columns::BPF_WORKLOADS, &workloads),
        "POD  WORKLOAD     MODE  FAILURE  ADDRESSES         NETNS\n\
         \u{20} 3  shop/client  mark  open     10.0.0.3,fd00::3   4026\n"
    );
    let redirects = [view::RedirectRow {
        pod_id: 3,
        workload: "shop/client".into(),
        direction: "out".into(),
        shard: 1,
        listener: 77,
        state: "on".into(),
    }];
    assert_eq!(
        shown(TABLE, columns::BPF_REDIRECT, &redirects),
        "POD  WORKLOAD     DIRECTION  SHARD  LISTENER  STATE\n\
         \u{20} 3  shop/client  out            1        77  on\n"
    );
    let services = [view::ServiceRow {
        address: ([10, 96, 0, 10], 80).into(),
        service_id: 5,
        decision: "proxy".into(),
        service: "shop/web:80".into(),
        slots: 10,
        backends: vec![
            (([10, 0, 0, 1], 80).into(), 9),
            (([10, 0, 0, 2], 80).into(), 1),
        ],
        routable: false,
    }];
    assert_eq!(
        shown(TABLE, columns::BPF_SERVICES, &services),
        "ADDRESS        SERVICE  NAME         DECISION  SLOTS  ROUTABLE  BACKENDS\n\
         10.96.0.10:80        5  shop/web:80  proxy        10  no        10.0.0.1:80 x9,10.0.0.2:80 x1\n"
    );
    let endpoints = [view::EndpointRow {
        service: "shop/web:80".into(),
        version: "v1".into(),
        address: ([10, 0, 0, 1], 80).into(),
        state: "on".into(),
        slots: 9,
        active: 2,
        cap_active: Some(3),
        cap_limit: Some(100),
        cap_refused: Some(4),
        opened: 20,
        established: 17,
        failed: 1,
        abandoned: 1,
        closed: 16,
        bytes_out: 1_000,
        bytes_in: 2_000,
    }];
    assert_eq!(
        shown(WIDE, columns::BPF_ENDPOINTS, &endpoints),
        "SERVICE      VERSION  ENDPOINT     STATE  SLOTS  ACTIVE    CAP  OPENED  ESTABLISHED  FAILED  BYTES-OUT  BYTES-IN  ABANDONED  CLOSED  CAP-REFUSED\n\
         shop/web:80  v1       10.0.0.1:80  on         9       2  3/100      20           17       1       1000      2000          1      16            4\n"
    );
    let conns = [view::ConnRow {
        leg: "out".into(),
        pod_id: 3,
        workload: "shop/client".into(),
        source: ([10, 0, 0, 3], 4_000).into(),
        destination: ([10, 96, 0, 10], 80).into(),
        asked: None,
        verdict: "proxy".into(),
        version: None,
        state: "established".into(),
        age_s: 61.5,
        tgid: 99,
        service: Some("shop/web".into()),
        endpoint: None,
        bytes_out: Some(4_200),
        bytes_in: Some(7),
        rtt_ms: Some(0.0434),
        cookie: 1,
    }];
    assert_eq!(
        shown(WIDE, columns::BPF_CONNS, &conns),
        "LEG  WORKLOAD     SOURCE         DESTINATION    ASKED  SERVICE   VERDICT  VERSION  ENDPOINT  STATE         OUT  IN    AGE      RTT  POD  TGID\n\
         out  shop/client  10.0.0.3:4000  10.96.0.10:80  -      shop/web  proxy    -        -         established  4.1K   7  1m01s  0.043ms    3    99\n"
    );
    let stats = [view::StatRow {
        reason: "captured".into(),
        count: 12,
        refusal: false,
    }];
    assert_eq!(
        shown(TABLE, columns::BPF_STATS, &stats),
        "REASON    COUNT  REFUSES\ncaptured     12  no\n"
    );
    let maps = [
        view::MapRow {
            map: "FLOWS".into(),
            entries: Some(64),
            capacity: 128,
        },
        view::MapRow {
            map: "EVENTS".into(),
            entries: None,
            capacity: 4_096,
        },
    ];
    assert_eq!(
        shown(TABLE, columns::BPF_MAPS, &maps),
        "MAP     ENTRIES  CAPACITY   USED\n\
         FLOWS        64       128  50.0%\n\
         EVENTS        -      4096      -\n"
    );
    let progs = [view::ProgRow {
        pin: "connect4".into(),
        program: "mesh_connect4".into(),
        kind: "cgroup_sock_addr".into(),
        prog_id: 10,
        link_id: 20,
        attached: "/kubepods".into(),
        verified_insns: 1_234,
    }];
    assert_eq!(
        shown(WIDE, columns::BPF_PROGS, &progs),
        "PIN       PROGRAM        TYPE              ATTACHED   PROG-ID  LINK-ID  INSNS\n\
         connect4  mesh_connect4  cgroup_sock_addr  /kubepods       10       20   1234\n"
    );
}

#[test]
fn every_column_of_config_rows_names_a_field_that_is_there() {
    let snapshot = FakeAgent::new().snapshot();
    let now = crate::clock::MonoNanos(0);
    let rows = [
        serde_json::to_value(snapshot.describe_services()),
        serde_json::to_value(snapshot.describe_routes()),
        serde_json::to_value(snapshot.describe_endpoints(now)),
        serde_json::to_value(snapshot.describe_policies()),
    ];
    let tables = [
        columns::SERVICES,
        columns::ROUTES,
        columns::ENDPOINTS,
        columns::POLICIES,
    ];
    for (rows, columns) in rows.into_iter().zip(tables) {
        let rows = rows.expect("rows are JSON");
        for column in columns {
            // The model has a value for each; a renamed field would leave only dashes.
            let shown: Vec<String> = rows
                .as_array()
                .expect("a list")
                .iter()
                .map(|row| (column.text)(row))
                .collect();
            assert!(
                shown.iter().any(|text| text != "-"),
                "{}: {shown:?}",
                column.head
            );
        }
    }
}

/// Without it: a renamed field turns a column into dashes.
#[test]
fn gateway_rows_say_whether_and_why_not() {
    let text = "apiVersion: mesh/v1alpha1
kind: MeshConfig
services: [{name: web, namespace: shop, addresses: [10.96.0.1], ports: [{name: http, number: 80, protocol: http}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: good, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: nobody, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: lost, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: api, sectionName: http}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";
    let config = crate::config::parse("mesh.yaml", text).expect("a valid file");
    assert_eq!(
        shown(TABLE, columns::GATEWAY, &config.model.routes),
        "KIND       NAMESPACE  ROUTE  PARENT         ACCEPTED          RESOLVED-REFS    WHY\n\
         HTTPRoute  shop       good   shop/web:80    True              BackendNotFound  there is no service `shop/nobody`\n\
         HTTPRoute  shop       lost   shop/api:http  NoMatchingParent  True             there is no service `shop/api`\n"
    );
}

/// Without it: a target of another service looks like one of the rule's own.
#[test]
fn targets_of_other_services_are_named() {
    let text = "apiVersion: mesh/v1alpha1
kind: MeshConfig
services:
  - {name: web, namespace: shop, addresses: [10.96.0.1], endpoints: [{address: 10.1.0.1}], ports: [{name: http, number: 80, protocol: http}]}
  - {name: api, namespace: shop, addresses: [10.96.0.2], endpoints: [{address: 10.1.0.2}], ports: [{name: http, number: 81, protocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80, weight: 2}, {name: api, port: 81}, {name: nobody, port: 80}]}]
";
    let config = crate::config::parse("mesh.yaml", text).expect("a valid file");
    let model = std::sync::Arc::new(config.model);
    let now = crate::clock::MonoNanos(0);
    let snapshot = crate::policy::Snapshot::compile(model, None, now);
    assert_eq!(
        shown(TABLE, columns::ROUTES, &snapshot.describe_routes()[..1]),
        "SERVICE   PORT  ORDER  RULE                    MATCH            TARGETS                                            ACTIONS  TERMS\n\
         shop/web    80      1  httproute/shop/split/0  path prefix \"/\"  * 50% (1/1), shop/api:81 * 25% (1/1), invalid 25%  -        -\n"
    );
}

#[test]
fn config_lists_come_from_the_agent() {
    let running = Running::start("cli-config");
    let list = |what, args| {
        let (result, out, _) = verb(|io| config::list(&agent(&running), what, args, io));
        assert_eq!(result.expect("it answers"), Exit::Done);
        out
    };
    let routes = list(args::ConfigVerb::Routes, TABLE);
    let expected = "SERVICE          PORT  ORDER  RULE";
    assert!(routes.starts_with(expected), "{routes}");
    assert!(routes.contains("v2 100% (1/1)"), "{routes}");
    let bare = list(
        args::ConfigVerb::Routes,
        OutputArgs {
            no_headers: true,
            ..TABLE
        },
    );
    assert_eq!(bare.lines().count() + 1, routes.lines().count());
    let json = list(
        args::ConfigVerb::Services,
        OutputArgs {
            output: Format::Json,
            ..TABLE
        },
    );
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["apiVersion"], &json["kind"]),
        (&"mesh/v1alpha1".into(), &"ServiceList".into())
    );
    let yaml = list(
        args::ConfigVerb::Services,
        OutputArgs {
            output: Format::Yaml,
            ..TABLE
        },
    );
    let yaml: serde_json::Value = serde_saphyr::from_str(&yaml).expect("YAML");
    assert_eq!(json, yaml);
}

#[test]
fn status_says_what_is_and_what_is_missing() {
    let running = Running::start("cli-status");
    let (result, out, _) = verb(|io| status::status(&agent(&running), TABLE, io));
    assert_eq!(result.expect("it answers"), Exit::Done);
    for line in [
        "ready      yes",
        "  ok       programs: 6 links",
        "redirect   on",
        "workers    2",
        "WORKLOAD        POD  STATE   ERROR",
        "default/client    1  live    -",
        "default/late      -  failed  namespace not found",
    ] {
        assert!(out.lines().any(|it| it == line), "{line:?} in\n{out}");
    }
    running.agent.ready.store(false, SeqCst);
    running.agent.redirect.store(false, SeqCst);
    let (result, out, _) = verb(|io| status::status(&agent(&running), TABLE, io));
    assert_eq!(result.expect("it answers"), Exit::Failed);
    for part in [
        "ready      no\n",
        "FAIL     model: none yet\n",
        "the old one stays in force:\n           mesh.yaml:3:7: unknown field `wieght`\n",
        "changed, but in force after a restart: agent.workers\n",
        "redirect   off: every new connection passes untouched\n",
    ] {
        assert!(out.contains(part), "{part:?} in\n{out}");
    }
}

#[test]
fn verbs_without_an_agent_say_so_and_fail() {
    for args in [
        &["status"][..],
        &["config", "routes"],
        &["reload"],
        &["redirect", "off"],
        &["logging"],
        &["explain", "--from", "a", "--to", "b:80"],
    ] {
        let ran = mesh(args);
        assert_eq!((ran.exit, &*ran.out), (1, ""), "{args:?}");
        assert!(
            ran.err
                .contains("no agent runs as instance \"ops-unit-nobody\""),
            "{ran:?}"
        );
        assert!(ran.err.contains("mesh run --config"), "{ran:?}");
    }
}

#[test]
fn verbs_and_options_do_not_contradict_each_other() {
    Cli::command().debug_assert();
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for args in [
        &[][..],
        &["frobnicate"],
        &["run"],
        &["bpf", "redirect"],
        &["bpf", "maps", "get"],
        &["config", "clusters"],
        &["status", "-o", "xml"],
        &["redirect", "maybe"],
        &["explain", "--from", "a", "--to", "b"],
        &["explain", "--from", "a", "--to", "b:80", "-H", "x"],
        &["validate"],
        &["cleanup", "now"],
        &["completions", "tcsh"],
    ] {
        let ran = mesh(args);
        assert_eq!((ran.exit, &*ran.out), (2, ""), "{args:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?}");
    }
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert_eq!(
        run(
            ["mesh", "--instance", "No Such", "status"],
            &mut out,
            &mut err
        ),
        2
    );
    assert!(text(err).contains("expected 1 to 32 of a-z"));
}

#[test]
fn help_goes_to_standard_output_and_is_no_failure() {
    for args in [
        &["--help"][..],
        &["bpf", "--help"],
        &["help", "explain"],
        &["--version"],
    ] {
        let ran = mesh(args);
        assert_eq!((ran.exit, &*ran.err), (0, ""), "{args:?}");
        assert!(!ran.out.is_empty());
    }
    assert!(
        mesh(&["--help"])
            .out
            .contains("Exit status: 0 done; 1 failed")
    );
}

#[test]
fn explain_tells_every_rule_and_ends_by_its_outcome() {
    let file = File::new("explain.yaml", CONFIG);
    let ask = |more: &[&str]| {
        let base = [
            "explain",
            "--from",
            "client",
            "--to",
            "reviews:80",
            "-f",
            file.path(),
        ];
        mesh(&[&base, more].concat())
    };
    let forwarded = ask(&["-H", "X-User: beta"]);
    assert_eq!(forwarded.exit, 0, "{forwarded:?}");
    assert!(forwarded.out.contains(": matches\n"), "{}", forwarded.out);
    assert!(
        forwarded
            .out
            .ends_with("forwarded: to one of 10.244.1.5:9080\n"),
        "{}",
        forwarded.out
    );
    let no_route = ask(&["--path", "/"]);
    assert_eq!(no_route.exit, 3, "{no_route:?}");
    assert_eq!(
        no_route.out.matches("): no, ").count(),
        2,
        "{}",
        no_route.out
    );
    assert!(
        no_route.out.contains("refused: 404 no_route: "),
        "{}",
        no_route.out
    );
    let empty = ask(&["--path", "/v2/x", "-o", "json"]);
    assert_eq!(empty.exit, 3, "{empty:?}");
    let json: serde_json::Value = serde_json::from_str(&empty.out).expect("JSON");
    assert_eq!(json["outcome"]["refused"]["reject"], "no_endpoint");
    assert_eq!(json["kind"], "Explanation");
    let outside = mesh(&[
        "explain",
        "--from",
        "client",
        "--to",
        "192.0.2.1:80",
        "-f",
        file.path(),
    ]);
    assert_eq!(outside.exit, 0);
    assert!(outside.out.contains("not touched:"), "{}", outside.out);
    let nobody = mesh(&[
        "explain",
        "--from",
        "x",
        "--to",
        "reviews:80",
        "-f",
        file.path(),
    ]);
    assert_eq!((nobody.exit, &*nobody.out), (1, ""));
    assert!(nobody.err.contains("default/client"), "{}", nobody.err);
}

#[test]
fn explain_of_a_live_agent_is_that_of_its_snapshot() {
    let running = Running::start("cli-explain");
    let line = [
        "mesh",
        "explain",
        "--from",
        "client",
        "--to",
        "reviews:80",
        "--path",
        "/api",
    ];
    let Verb::Explain(args) = Cli::try_parse_from(line).expect("it is right").verb else {
        panic!("another verb")
    };
    let (result, out, _) = verb(|io| explain::explain(&agent(&running), args, io));
    assert_eq!(result.expect("it answers"), Exit::Done);
    assert!(
        out.contains("forwarded: to one of 10.244.1.5:9080"),
        "{out}"
    );
}

#[test]
fn validate_counts_every_file() {
    let good = File::new("good.yaml", CONFIG);
    let bad = File::new("bad.yaml", &CONFIG.replace("hostnames", "hostnmes"));
    let ran = mesh(&["validate", "-f", good.path()]);
    assert_eq!(ran.exit, 0, "{ran:?}");
    assert!(
        ran.out
            .ends_with("1 service, 2 rules, 0 policies, 1 workload; 1 warning\n"),
        "{ran:?}"
    );
    let ran = mesh(&["validate", "-f", good.path(), bad.path()]);
    assert_eq!(ran.exit, 1);
    assert!(
        ran.out.contains("valid ") && ran.out.contains("invalid "),
        "{ran:?}"
    );
    assert!(
        ran.err.contains("hostnmes") && ran.err.contains("bad.yaml"),
        "{ran:?}"
    );
    let ran = mesh(&["validate", "-f", bad.path(), "-o", "json"]);
    assert_eq!((ran.exit, &*ran.err), (1, ""));
    let json: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(json["items"][0]["valid"], false);
    assert!(json["items"][0]["problems"][0]["line"].is_u64(), "{json:#}");
    let ran = mesh(&["validate", "-f", "/no/such/file.yaml"]);
    assert_eq!(ran.exit, 1);
    assert!(ran.err.contains("/no/such/file.yaml"), "{ran:?}");
}

#[test]
fn schema_is_json() {
    let ran = mesh(&["schema"]);
    assert_eq!(ran.exit, 0);
    let schema: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
    assert!(schema["properties"]["services"].is_object(), "{schema:#}");
}

#[test]
fn completions_name_the_verbs_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = mesh(&["completions", shell]);
        assert_eq!(ran.exit, 0, "{shell}");
        assert!(
            ran.out.contains("explain") && ran.out.contains("workloads"),
            "{shell}"
        );
    }
}

#[test]
fn version_is_versioned_too() {
    assert!(
        mesh(&["version"])
            .out
            .starts_with(concat!("mesh ", env!("CARGO_PKG_VERSION")))
    );
    let json: serde_json::Value =
        serde_json::from_str(&mesh(&["version", "-o", "json"]).out).expect("JSON");
    assert_eq!(json["kind"], "Version");
    assert_eq!(json["abi"], mesh_common::abi::ABI_VERSION);
}

#[test]
fn redirect_reload_and_logging_reach_the_agent() {
    let running = Running::start("cli-control");
    let agent = agent(&running);
    let (result, out, err) = verb(|io| control::redirect(&agent, args::Switch::Off, io));
    assert_eq!((result.expect("it answers"), &*out), (Exit::Done, ""));
    assert!(err.contains("off") && !running.agent.redirect.load(SeqCst));
    let (result, ..) = verb(|io| control::redirect(&agent, args::Switch::On, io));
    assert_eq!(result.expect("it answers"), Exit::Done);
    assert!(running.agent.redirect.load(SeqCst));
    let (result, _, err) = verb(|io| control::reload(&agent, io));
    assert_eq!(result.expect("it answers"), Exit::Done);
    assert!(err.contains("generation 2"), "{err}");
    running.agent.reload_fails.store(true, SeqCst);
    let (result, ..) = verb(|io| control::reload(&agent, io));
    let error = format!("{:#}", result.expect_err("the agent says no"));
    assert_eq!(error, "the old configuration stays in force\nmesh.yaml: no");
    let (result, ..) = verb(|io| control::logging(&agent, Some("louder".into()), io));
    let error = format!("{:#}", result.expect_err("no such level"));
    assert!(error.contains("\"louder\" is not a level"), "{error}");
}

/// An agent that watches a file of the test.
fn watching(file: &File) -> std::sync::Arc<FakeAgent> {
    let mut agent = FakeAgent::new();
    let inner = std::sync::Arc::get_mut(&mut agent).expect("nobody else has it");
    inner.config.clone_from(&file.0);
    agent
}

#[test]
fn apply_replaces_the_watched_file_and_waits_for_it() {
    let (watched, new) = (
        File::new("watched.yaml", "old"),
        File::new("new.yaml", CONFIG),
    );
    let running = Running::with("cli-apply", watching(&watched));
    let args = args::ApplyArgs {
        file: new.0.clone(),
    };
    let (result, _, err) = verb(|io| control::apply(&agent(&running), &args, io));
    assert_eq!(result.expect("it is valid"), Exit::Done);
    assert!(err.contains("generation 2"), "{err}");
    assert_eq!(fs::read_to_string(&watched.0).expect("it is there"), CONFIG);
    assert_eq!(running.agent.reloads.load(SeqCst), 1);
}

#[test]
fn apply_of_an_invalid_file_changes_nothing() {
    let watched = File::new("kept.yaml", "old");
    let bad = File::new("broken.yaml", "kind: Nonsense\n");
    let running = Running::with("cli-apply-bad", watching(&watched));
    let args = args::ApplyArgs {
        file: bad.0.clone(),
    };
    let (result, ..) = verb(|io| control::apply(&agent(&running), &args, io));
    let error = format!("{:#}", result.expect_err("it is not valid"));
    assert!(error.contains("nothing was changed"), "{error}");
    assert_eq!(fs::read_to_string(&watched.0).expect("it is there"), "old");
    assert_eq!(running.agent.reloads.load(SeqCst), 0);
}

#[test]
fn apply_that_the_agent_does_not_take_is_told() {
    let (watched, new) = (
        File::new("refused.yaml", "old"),
        File::new("new2.yaml", CONFIG),
    );
    let running = Running::with("cli-apply-no", watching(&watched));
    running.agent.reload_fails.store(true, SeqCst);
    let args = args::ApplyArgs {
        file: new.0.clone(),
    };
    let (result, ..) = verb(|io| control::apply(&agent(&running), &args, io));
    let error = format!("{:#}", result.expect_err("the agent says no"));
    assert!(
        error.contains("is in place, but the agent does not take it\nmesh.yaml: no"),
        "{error}"
    );
}

#[test]
fn checks_show_what_to_do() {
    let check = |name: &str, ok, required, remedy: Option<&str>| Check {
        name: name.into(),
        ok,
        required,
        found: "something".into(),
        remedy: remedy.map(Into::into),
    };
    let checks = [
        check("kernel", true, true, None),
        check(
            "btf",
            false,
            true,
            Some("boot a kernel with CONFIG_DEBUG_INFO_BTF"),
        ),
        check(
            "jit",
            false,
            false,
            Some("sysctl net.core.bpf_jit_enable=1"),
        ),
    ];
    let (result, out, _) = verb(|io| check::print(&checks, TABLE, io).map(|()| Exit::Done));
    assert_eq!(result.expect("memory"), Exit::Done);
    assert_eq!(
        out,
        "CHECK   RESULT  FOUND\n\
         kernel  ok      something\n\
         btf     FAIL    something\n\
         jit     warn    something\n\
         FAIL  btf: boot a kernel with CONFIG_DEBUG_INFO_BTF\n\
         warn  jit: sysctl net.core.bpf_jit_enable=1\n"
    );
}

/// A writer whose reader went away, or whose disk is full.
struct Broken(io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn reader_that_went_away_is_no_failure() {
    let ended = |kind| {
        let mut err = Vec::new();
        let exit = run(["mesh", "completions", "bash"], &mut Broken(kind), &mut err);
        (exit, text(err))
    };
    assert_eq!(ended(io::ErrorKind::BrokenPipe), (0, String::new()));
    let (exit, err) = ended(io::ErrorKind::StorageFull);
    assert_eq!(exit, 1);
    assert!(err.starts_with("error: "), "{err}");
}

#[test]
fn colours_appear_only_where_they_are_wanted() {
    let running = Running::start("cli-colour");
    let with = |colour| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut io = Io {
            out: &mut out,
            err: &mut err,
            colour_out: colour,
            colour_err: colour,
        };
        status::status(&agent(&running), TABLE, &mut io).expect("it answers");
        text(out)
    };
    assert!(!with(false).contains('\u{1b}'));
    assert!(with(true).contains("\u{1b}[32myes\u{1b}[0m"));
}

#[test]
fn options_of_lists_may_stand_before_or_behind() {
    for line in [
        ["bpf", "-o", "json", "progs"],
        ["bpf", "progs", "-o", "json"],
    ] {
        let cli = Cli::try_parse_from(["mesh"].into_iter().chain(line)).expect("both are right");
        let Verb::Bpf {
            what: BpfVerb::Progs,
            output,
        } = cli.verb
        else {
            panic!("another verb")
        };
        assert_eq!(output.output, Format::Json);
    }
}

#[test]
fn plain_formats_are_the_machine_formats() {
    let document = document::one("Thing", &serde_json::json!({"a": 1})).expect("JSON");
    for (format, expected) in [
        (PlainFormat::Text, ""),
        (
            PlainFormat::Yaml,
            "a: 1\napiVersion: mesh/v1alpha1\nkind: Thing\n",
        ),
    ] {
        let mut out = Vec::new();
        let printed = output::machine(&mut out, format, &document).expect("memory");
        assert_eq!(
            (printed, text(out)),
            (format != PlainFormat::Text, expected.to_owned())
        );
    }
}
