//! Every known pitfall of interception has a test that says so, by number; `docs/PITFALLS.md` is
//! made from them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// What goes wrong, by number.
const PITFALLS: [&str; 36] = [
    "A connect that is rewritten to loopback stays in the pod's namespace; a listener of the node never sees it.",
    "`sk_lookup` accepts a listener of another namespace, and the connection is reset.",
    "The agent's own dial is captured again: a loop.",
    "The same, for one address family only.",
    "Stale flow entries become permissions.",
    "An LRU evicts a live entry, and the original destination is lost.",
    "Tuples of different pods collide on the loopback.",
    "A spoofed source port equals the client's own: the handshake hangs.",
    "Transparent sockets stand in the way of the application's bind.",
    "Two legs and their TIME_WAIT use up the ephemeral ports.",
    "A socket load balancer of the CNI hides the virtual address.",
    "A hook attached to the wrong or a dying cgroup, or a virtualised cgroup mount.",
    "Hybrid hierarchies: a socket loses its cgroup v2 when net_cls is used.",
    "Two generations of a program at one hook.",
    "A hole in the capture during a restart.",
    "The reuseport group picks a process that is leaving.",
    "Half-open connections die at a hand-over.",
    "A pod connects before it is enrolled.",
    "Our descriptors keep a namespace alive.",
    "Dead pinned links pile up.",
    "Probes of the kubelet are captured or dropped.",
    "Early data is not seen.",
    "A half-close loses data.",
    "A socket can't be read after it left the fast path.",
    "Memory grows under a slow reader.",
    "Native XDP on a veth turns TSO off.",
    "Somebody else's XDP or tc program is replaced.",
    "Socket options above 4096 bytes.",
    "Multipath TCP sockets and `bpf_setsockopt`.",
    "`sk_lookup` does not know the namespace: several pods, addresses that come later.",
    "`ingress_ifindex` over `lo` is not what it seems.",
    "The verifier of another kernel refuses what the compiler made.",
    "Connection tracking corrupts tuples.",
    "Mark bits that others use.",
    "An agent below the captured cgroup captures itself.",
    "Stale datagram backends, and sockets that reconnect.",
];

/// A test and the file that holds it.
type Place = (String, String);

#[test]
fn every_pitfall_has_a_test_and_the_document_names_it() {
    let found = tests_by_pitfall();
    let missing: Vec<_> = (1..=PITFALLS.len())
        .filter(|number| !found.contains_key(number))
        .collect();
    assert!(missing.is_empty(), "pitfalls without a test: {missing:?}");
    let unknown: Vec<_> = found.keys().filter(|n| **n > PITFALLS.len()).collect();
    assert!(unknown.is_empty(), "no such pitfalls: {unknown:?}");

    let path = root().join("docs/PITFALLS.md");
    let wanted = document(&found);
    if std::env::var_os("MESH_BLESS").is_some() {
        fs::write(&path, &wanted).expect("docs can be written");
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == wanted,
        "{} is stale: MESH_BLESS=1 cargo test rewrites it",
        path.display()
    );
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(found: &BTreeMap<usize, Vec<Place>>) -> String {
    let mut text = String::from(
        "# Pitfalls of transparent interception\n\nWhat went wrong in other projects or in \
         experiments, and the tests that keep it from going wrong here. Made from the tests' own \
         comments by `mesh-user/tests/unit_pitfalls.rs`.\n\n| # | pitfall | tests |\n|---|---|---|\n",
    );
    for (number, what) in (1..).zip(PITFALLS) {
        let tests: Vec<String> = found
            .get(&number)
            .into_iter()
            .flatten()
            .map(|(file, test)| format!("`{file}`: `{test}`"))
            .collect();
        let _ = writeln!(text, "| {number} | {what} | {} |", tests.join("<br>"));
    }
    text
}

/// Tests whose comment says «Pitfall N:», or «Pitfalls N, M:».
fn tests_by_pitfall() -> BTreeMap<usize, Vec<Place>> {
    let mut found: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
    for folder in ["mesh-user/tests", "mesh-user/src", "mesh-ebpf/src"] {
        walk(&root().join(folder), &mut |path| {
            let file = path.strip_prefix(root()).unwrap_or(path);
            let text = fs::read_to_string(path).expect("a source can be read");
            for (number, test) in pitfalls(&text) {
                let place = (file.display().to_string(), test);
                found.entry(number).or_default().push(place);
            }
        });
    }
    for places in found.values_mut() {
        places.sort();
        places.dedup();
    }
    found
}

/// Numbers that the comment of a test names, with the test's name.
fn pitfalls(text: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    let mut numbers: Vec<usize> = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            numbers.extend(numbers_in(comment));
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        } else {
            let name = line
                .split_once("fn ")
                .and_then(|(_, rest)| rest.split_once('('));
            if let Some((name, _)) = name.filter(|_| is_test) {
                named.extend(numbers.iter().map(|number| (*number, name.to_owned())));
            }
            numbers.clear();
            is_test = false;
        }
    }
    named
}

fn numbers_in(comment: &str) -> Vec<usize> {
    let Some((_, rest)) = comment
        .split_once("Pitfalls ")
        .or_else(|| comment.split_once("Pitfall "))
    else {
        return Vec::new();
    };
    let list = rest.split([':', '.', '(']).next().unwrap_or_default();
    list.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn walk(folder: &Path, each: &mut impl FnMut(&Path)) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry can be read").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, each);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            each(&path);
        }
    }
}

#[test]
fn pitfall_numbers_are_read_from_the_comments_of_tests_only() {
    let text = "/// Pitfalls 3, 14: a loop.\n#[test]\nfn a() {}\n/// Pitfall 7.\nfn helper() {}\n\
                /// Nothing.\n#[test]\nfn b() {}\n";
    assert_eq!(pitfalls(text), [(3, "a".to_owned()), (14, "a".to_owned())]);
}
