//! TLS over the whole path: unmodified programs in pods, the kernel's capture, the agent.

mod scene;

use scene::{Scene, Talker, build, json, shell, told, with_service};

/// The service's address: nobody but the mesh routes it.
const EDGE: &str = "10.96.0.60";

/// Endpoints of two versions: each shows a certificate of its own and says which one it is.
const SERVER: &str = r#"
import ssl

def serve(port, word, cert):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert + '.crt', cert + '.key')
    listener = socket.create_server(('', port), backlog=128)
    def run(s):
        try:
            with context.wrap_socket(s, server_side=True) as tls:
                body = word.encode()
                tls.recv(65536)
                tls.sendall(b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s'
                            % (len(body), body))
        except Exception as e:
            print(word, repr(e), file=sys.stderr)
    def accept():
        while True:
            s, _ = listener.accept()
            threading.Thread(target=run, args=(s,), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()

serve(9443, sys.argv[1], sys.argv[2])
tell('ready')
threading.Event().wait()
"#;

/// Asks by a server name, verifies by its CA; a byte each segment until the handshake is over.
const CLIENT: &str = r#"
import ssl

def ask(host, name, ca, slow):
    context = ssl.create_default_context(cafile=ca)
    s = dial(host, 443)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    def flush():
        data = outgoing.read()
        for at in range(0, len(data), 1 if slow else 65536):
            s.sendall(data[at:at + (1 if slow else 65536)])
    def step(what):
        while True:
            try:
                result = what()
                flush()
                return result
            except ssl.SSLWantReadError:
                flush()
                data = s.recv(65536)
                if not data:
                    raise ConnectionError('the end')
                incoming.write(data)
    step(tls.do_handshake)
    slow = False
    step(lambda: tls.write(b'GET / HTTP/1.1\r\nhost: x\r\n\r\n'))
    return step(lambda: tls.read(65536)).decode().rsplit('\r\n', 1)[1]

host, ca = sys.argv[1], sys.argv[2]
answers = {}
for name, slow in [('one.example', False), ('two.example', True), ('deep.two.example', False),
                   ('none.example', False)]:
    try:
        answers[name] = ask(host, name, ca, slow)
    except Exception as e:
        answers[name] = type(e).__name__
tell(answers)
"#;

/// Certificates by rcgen, in the scene's folder.
fn certificates(folder: &std::path::Path) {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let name = rcgen::DnType::CommonName;
    params.distinguished_name.push(name, "traffic-tls");
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    std::fs::write(folder.join("ca.crt"), ca).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    for (file, names) in [
        ("v1", &["one.example", "none.example"][..]),
        ("v2", &["two.example", "*.two.example", "none.example"]),
        ("edge", &["edge.example"]),
    ] {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.use_authority_key_identifier_extension = true;
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{file}.crt")), cert.pem()).unwrap();
        std::fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

struct Edge {
    scene: Scene,
    folder: std::path::PathBuf,
    _servers: Vec<Talker>,
}

fn edge(name: &str, port: &str, rules: &str) -> Edge {
    let mut scene = build(name);
    let folder = scene.access_log().parent().unwrap().to_owned();
    certificates(&folder);
    let mut servers = Vec::new();
    let mut endpoints = String::new();
    for version in ["v1", "v2"] {
        let pod = scene.bed.pod(&format!("edge-{version}")).unwrap();
        let files = folder.join(version);
        let server = Talker::start(&scene, &pod, SERVER, &[version, files.to_str().unwrap()]);
        assert_eq!(server.next(), "ready");
        servers.push(server);
        endpoints.push_str(&format!(
            "      - {{address: {}, tags: {{version: {version}}}}}\n",
            pod.v4
        ));
    }
    let port = port.replace("FOLDER", folder.to_str().unwrap());
    let rules = rules.replace("FOLDER", folder.to_str().unwrap());
    let service = format!(
        "  - name: edge\n    hostnames: [edge]\n    addresses: [{EDGE}]\n    ports: [{port}]\n    \
         versions: {{v1: {{version: v1}}, v2: {{version: v2}}}}\n    endpoints:\n{endpoints}"
    );
    let text = with_service(&scene, &service, &rules);
    scene.start_with(&text).unwrap();
    Edge {
        scene,
        folder,
        _servers: servers,
    }
}

#[test]
fn server_name_chooses_the_version_for_an_unmodified_program() {
    let port = "{name: tls, number: 443, target: 9443, protocol: tls}";
    let rules = "
rules:
  - {name: one, service: edge, match: {sni: one.example}, route: [{version: v1}]}
  - {name: two, service: edge, match: {sni: [two.example, \"*.two.example\"]}, route: [{version: v2}]}
";
    let edge = edge("t-tls-sni", port, rules);
    let (scene, ca) = (&edge.scene, edge.folder.join("ca.crt"));
    let answers = told(scene, &scene.client, CLIENT, &[EDGE, ca.to_str().unwrap()]);
    assert_eq!(answers["one.example"], "v1", "{answers}");
    assert_eq!(answers["two.example"], "v2", "byte by byte: {answers}");
    assert_eq!(answers["deep.two.example"], "v2", "{answers}");
    let refused = answers["none.example"].as_str().unwrap();
    assert!(refused.ends_with("Error"), "{answers}");
    let explained = |name: &str| {
        let from = scene.client.name.clone();
        let to = format!("{EDGE}:443");
        json(
            scene,
            &[
                "explain", "--from", &from, "--to", &to, "--sni", name, "-o", "json",
            ],
        )
    };
    let why = explained("deep.two.example");
    assert_eq!(why["rule"], "two", "{why}");
    assert_eq!(
        explained("none.example")["outcome"]["refused"]["reject"],
        "no_route"
    );
    edge.scene.tear_down().unwrap();
}

#[test]
fn tls_ends_at_the_node_and_begins_again_towards_the_endpoint() {
    let port = "{name: web, number: 443, target: 9443, protocol: http, tls: {terminate: {alpn: http/1.1, \
                certificates: {cert: FOLDER/edge.crt, key: FOLDER/edge.key}}}}";
    let rules = "
rules:
  - {name: two, service: edge, match: {path: {prefix: /two}}, route: [{version: v2}]}
  - {name: rest, service: edge, route: [{version: v1}]}
policies:
  - {service: edge, version: v1, tls: {sni: one.example, ca: FOLDER/ca.crt}}
  - {service: edge, version: v2, tls: {sni: other.example, ca: FOLDER/ca.crt}}
";
    let edge = edge("t-tls-end", port, rules);
    let scene = &edge.scene;
    let ask = |path: &str| {
        let ca = edge.folder.join("ca.crt");
        let line = format!(
            "curl -s -D - --cacert {} --resolve edge.example:443:{EDGE} https://edge.example{path}",
            ca.display()
        );
        shell(scene, &scene.client, &line)
    };
    let good = ask("/");
    assert!(good.contains(" 200") && good.ends_with("v1"), "{good}");
    // Its certificate is for another name.
    let bad = ask("/two");
    assert!(bad.contains("x-mesh-reject: upstream_untrusted"), "{bad}");
    let status = json(scene, &["status", "-o", "json"]);
    let conditions = status["conditions"].as_array().unwrap();
    let files = conditions
        .iter()
        .find(|c| c["name"] == "tls-files")
        .unwrap();
    assert_eq!(files["ok"], true, "{files}");
    std::fs::write(edge.folder.join("edge.key"), "half").unwrap();
    scene::eventually("the problem is told", || {
        json(scene, &["status", "-o", "json"])
            .to_string()
            .contains("no-key")
    });
    assert!(ask("/").ends_with("v1"), "the last pair is in force");
    edge.scene.tear_down().unwrap();
}
