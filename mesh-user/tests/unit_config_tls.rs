//! What the configuration says of TLS: values that arrive, mistakes that are named at their place.

use mesh_user::{
    config::{self, Config},
    model::{
        Protocol,
        tls::{Alpn, TlsVersion, UpstreamTls},
    },
};

/// What follows begins at line 3.
const HEAD: &str = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\n";

fn good(text: &str) -> Config {
    config::parse("mesh.yaml", &format!("{HEAD}{text}")).expect(text)
}

/// `LINE:COLUMN code field` of each problem.
fn bad(text: &str) -> Vec<String> {
    let error = config::parse("mesh.yaml", &format!("{HEAD}{text}")).expect_err(text);
    error
        .report()
        .problems
        .iter()
        .map(|p| format!("{}:{} {} {}", p.line, p.column, p.code.name(), p.field))
        .collect()
}

fn service(port: &str) -> String {
    format!(
        "services:\n  - name: a\n    hostnames: [A.Example, b.example]\n    addresses: [10.0.0.1]\n    \
         ports: [{port}]\n    endpoints: [{{address: 10.1.0.1}}]\n"
    )
}

#[test]
fn server_names_arrive_in_lower_case() {
    let text = service("{number: 443, protocol: tls}")
        + "rules: [{service: a, match: {sni: [Shop.Example, \"*.B.example\"]}, route: [{weight: 1}]}]\n";
    let config = good(&text);
    assert_eq!(config.model.services[0].ports[0].protocol, Protocol::Tls);
    assert_eq!(config.model.services[0].ports[0].name, "tls-443");
    let names = &config.model.rules[0].matches[0].sni;
    assert_eq!(**names, ["shop.example", "*.b.example"]);
}

#[test]
fn server_names_that_are_none_are_refused() {
    for name in [
        "\"*\"",
        "\"*.\"",
        "\"a.*.b\"",
        "a..b",
        "a.",
        ".a",
        "\"a b\"",
        "\"*a.b\"",
        "-a.b",
    ] {
        let text = service("{number: 443, protocol: tls}")
            + &format!("rules: [{{service: a, match: {{sni: {name}}}, route: [{{weight: 1}}]}}]\n");
        assert_eq!(
            bad(&text),
            ["9:35 bad-value rules[0].match[0].sni[0]"],
            "{name}"
        );
    }
}

#[test]
fn server_name_beside_a_condition_on_http_is_a_conflict() {
    let text = service("{number: 443, protocol: tls}")
        + "rules:\n  - service: a\n    match: {sni: a.example, method: GET}\n    route: [{weight: 1}]\n";
    assert_eq!(bad(&text), ["11:18 tls-conflict rules[0].match[0].sni"]);
}

#[test]
fn server_name_on_a_port_that_sees_none_is_warned_of() {
    for (port, warned) in [
        ("{number: 80, protocol: http}", true),
        ("{number: 80, protocol: tcp}", true),
        ("{number: 80, protocol: tls}", false),
        ("{number: 80}", false),
        (
            "{number: 80, protocol: tcp, tls: {terminate: {certificates: {cert: /c, key: /k}}}}",
            false,
        ),
    ] {
        let text = format!(
            "{HEAD}{}rules: [{{service: a, match: {{sni: a.example}}, route: [{{weight: 1}}]}}]\n",
            service(port)
        );
        let examined = config::parse("mesh.yaml", &text).expect("a warning at most");
        let checked = config::check(&examined.model);
        let said = checked
            .iter()
            .any(|finding| finding.code.name() == "unreachable-rule");
        assert_eq!(said, warned, "{port}: {checked:?}");
    }
}

#[test]
fn termination_arrives_with_what_the_protocol_allows() {
    for (protocol, alpn) in [
        ("http", &[Alpn::Http2, Alpn::Http1][..]),
        ("auto", &[Alpn::Http2, Alpn::Http1]),
        ("http2", &[Alpn::Http2]),
        ("grpc", &[Alpn::Http2]),
        ("tcp", &[]),
    ] {
        let config = good(&service(&format!(
            "{{number: 443, protocol: {protocol}, tls: {{terminate: {{certificates: {{cert: /c, key: /k}}}}}}}}"
        )));
        let tls = config.model.services[0].ports[0].tls.as_ref().unwrap();
        assert_eq!(tls.alpn, alpn, "{protocol}");
        assert_eq!(tls.min_version, TlsVersion::V12);
        assert_eq!(
            (&*tls.certificates[0].cert, tls.client_ca.as_ref()),
            ("/c".as_ref(), None)
        );
    }
}

#[test]
fn termination_that_contradicts_itself_is_refused() {
    let port = |protocol: &str, more: &str| {
        service(&format!("{{number: 443, protocol: {protocol}, {more}}}"))
    };
    let terminate =
        |more: &str| format!("tls: {{terminate: {{certificates: {{cert: /c, key: /k}}{more}}}}}");
    let cases = [
        (
            port("tls", &terminate("")),
            "tls-conflict services[0].ports[0].tls",
        ),
        (
            port("tcp", &terminate(", alpn: h2")),
            "tls-conflict services[0].ports[0].tls.terminate.alpn[0]",
        ),
        (
            port("grpc", &terminate(", alpn: [h2, http/1.1]")),
            "tls-conflict services[0].ports[0].tls.terminate.alpn[1]",
        ),
        (
            port("http", &terminate(", alpn: [h2, h2]")),
            "duplicate services[0].ports[0].tls.terminate.alpn[1]",
        ),
        (
            port("http", &terminate(", min-version: TLSv1.1")),
            "bad-value services[0].ports[0].tls.terminate.min-version",
        ),
        (
            port(
                "http",
                "tls: {terminate: {certificates: {cert: c, key: /k}}}",
            ),
            "bad-value services[0].ports[0].tls.terminate.certificates[0].cert",
        ),
        (
            port("http", "tls: {terminate: {certificates: {cert: /c}}}"),
            "missing-field services[0].ports[0].tls.terminate.certificates[0].key",
        ),
        (
            port("http", "tls: {terminate: {}}"),
            "missing-field services[0].ports[0].tls.terminate.certificates",
        ),
        (
            port("http", "tls: {}"),
            "missing-field services[0].ports[0].tls.terminate",
        ),
        (
            port("tcp", &format!("path: kernel, {}", terminate(""))),
            "needs-proxy services[0].ports",
        ),
    ];
    for (text, wanted) in cases {
        let found = bad(&text);
        assert!(
            found.len() == 1 && found[0].starts_with("7:") && found[0].ends_with(wanted),
            "{wanted}: {found:?}"
        );
    }
}

fn policy(port: &str, tls: &str) -> String {
    service(port) + &format!("policies: [{{service: a, tls: {{{tls}}}}}]\n")
}

#[test]
fn origination_arrives_with_the_first_hostname() {
    let config = good(&policy("{number: 80, protocol: http}", "ca: /ca"));
    let Some(UpstreamTls::Simple(tls)) = &config.model.policies[0].tls else {
        panic!("TLS");
    };
    assert_eq!(tls.sni.as_deref(), Some("a.example"));
    assert!(!tls.insecure_skip_verify && tls.certificate.is_none());
    let off = good(&policy("{number: 80, protocol: http}", "mode: off"));
    assert_eq!(off.model.policies[0].tls, Some(UpstreamTls::Off));
}

#[test]
fn origination_that_contradicts_itself_is_refused() {
    let http = "{number: 80, protocol: http}";
    let cases = [
        (policy(http, "cert: /c"), "tls-conflict policies[0].tls"),
        (policy(http, "ca: ca.crt"), "bad-value policies[0].tls.ca"),
        (
            policy(http, "insecure-skip-verify: true, ca: /ca"),
            "tls-conflict policies[0].tls.insecure-skip-verify",
        ),
        (
            policy(http, "alpn: db"),
            "tls-conflict policies[0].tls.alpn",
        ),
        (
            policy("{number: 80, protocol: tcp}", "alpn: \"\""),
            "bad-value policies[0].tls.alpn[0]",
        ),
        (
            policy(http, "subject-alt-names: \"spiffe://x/y\""),
            "bad-value policies[0].tls.subject-alt-names[0]",
        ),
        (
            policy(http, "sni: \"*.a\""),
            "bad-value policies[0].tls.sni",
        ),
        (
            policy(http, "mode: mutual"),
            "bad-value policies[0].tls.mode",
        ),
        (
            policy("{number: 80, protocol: tls}", "ca: /ca"),
            "tls-conflict policies[0].tls",
        ),
        (
            policy("{number: 80, protocol: tcp, path: kernel}", "ca: /ca"),
            "needs-proxy policies[0]",
        ),
    ];
    for (text, wanted) in cases {
        let found = bad(&text);
        assert!(
            found.len() == 1 && found[0].starts_with("9:") && found[0].ends_with(wanted),
            "{wanted}: {found:?}"
        );
    }
}
