//! Hellos of a real client, hellos made by hand, and hellos that are broken.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

use super::*;

/// What rustls sends to `name`.
fn real(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    wire
}

fn vector(width: usize, bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u32).to_be_bytes();
    [&length[4 - width..], bytes].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, content)].concat()
}

fn names(list: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = list
        .iter()
        .flat_map(|(kind, name)| [&[*kind][..], &vector(2, name)].concat())
        .collect();
    extension(EXTENSION_SERVER_NAME, &vector(2, &list))
}

fn body(extensions: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend(vector(1, &[9; 32]));
    body.extend(vector(2, &[0x13, 0x01]));
    body.extend(vector(1, &[0]));
    if let Some(extensions) = extensions {
        body.extend(vector(2, extensions));
    }
    body
}

fn message(body: &[u8]) -> Vec<u8> {
    [&[MESSAGE_CLIENT_HELLO][..], &vector(3, body)].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|fragment| [&[22, 3, 1][..], &vector(2, fragment)].concat())
        .collect()
}

fn whole(wire: &[u8]) -> Result<Option<ClientHello>, NoHello> {
    Scan::default().advance(wire)
}

/// As it comes in segments of these sizes.
fn in_segments(
    wire: &[u8],
    sizes: impl IntoIterator<Item = usize>,
) -> Result<Option<ClientHello>, NoHello> {
    let (mut scan, mut end) = (Scan::default(), 0);
    for size in sizes {
        end = (end + size).min(wire.len());
        match scan.advance(&wire[..end]) {
            Ok(None) if end < wire.len() => {}
            other => return other,
        }
    }
    scan.advance(wire)
}

fn with_name(name: &[u8]) -> Result<Option<ClientHello>, NoHello> {
    whole(&records(
        &message(&body(Some(&names(&[(0, name)])))),
        1 << 14,
    ))
}

#[test]
fn hello_of_a_real_client_tells_name_protocols_and_versions() {
    let hello = whole(&real("Shop.Example.org", &[b"h2", b"http/1.1"])).unwrap();
    let hello = hello.unwrap();
    assert_eq!(hello.server_name.as_deref(), Some("shop.example.org"));
    assert_eq!(hello.alpn, [Box::from(*b"h2"), Box::from(*b"http/1.1")]);
    assert!(hello.versions.contains(&0x0304), "{:x?}", hello.versions);
}

#[test]
fn hello_to_an_address_names_nobody() {
    let hello = whole(&real("192.0.2.1", &[])).unwrap().unwrap();
    assert_eq!((hello.server_name, hello.alpn.len()), (None, 0));
    assert_eq!(with_name(b"192.0.2.1").unwrap().unwrap().server_name, None);
    assert_eq!(
        with_name(b"2001:db8::1").unwrap().unwrap().server_name,
        None
    );
}

#[test]
fn hello_cut_at_every_byte_is_incomplete_and_whole_in_two_segments() {
    let wire = real("a.example", &[b"h2"]);
    let expected = whole(&wire).unwrap().unwrap();
    for cut in 0..wire.len() {
        assert_eq!(whole(&wire[..cut]), Ok(None), "cut at {cut}");
        let seen = in_segments(&wire, [cut, wire.len() - cut]);
        assert_eq!(seen, Ok(Some(expected.clone())), "cut at {cut}");
    }
    let seen = in_segments(&wire, std::iter::repeat_n(1, wire.len()));
    assert_eq!(seen, Ok(Some(expected)), "byte by byte");
}

#[test]
fn hello_in_any_records_is_the_same() {
    let wire = real("a.example", &[b"h2"]);
    let expected = whole(&wire).unwrap().unwrap();
    let message = &wire[RECORD_HEADER..];
    for size in [1, 2, 3, 4, 5, 64, 200, 16_384] {
        let wire = records(message, size);
        let seen = in_segments(&wire, std::iter::repeat_n(1, wire.len()));
        assert_eq!(seen, Ok(Some(expected.clone())), "records of {size}");
    }
}

#[test]
fn hello_at_and_above_its_limit() {
    let of = |length: usize| {
        let name = names(&[(0, b"big.example")]);
        let rest = length - body(Some(&name)).len() - 4;
        let all = [name, extension(51, &vec![1; rest])].concat();
        let body = body(Some(&all));
        assert_eq!(body.len(), length);
        records(&message(&body), 16_384)
    };
    // Extensions are a vector of 65,535 bytes at most.
    let largest = whole(&of(65_535)).unwrap().unwrap();
    assert_eq!(largest.server_name.as_deref(), Some("big.example"));
    let mut above = of(65_535);
    // The message says that it is longer than 64 KiB.
    above[RECORD_HEADER + 1..RECORD_HEADER + 4].copy_from_slice(&[1, 0, 1]);
    assert_eq!(whole(&above), Err(NoHello::Malformed));
}

#[test]
fn hello_in_too_many_bytes_of_records_is_refused() {
    // One byte a record: six times as much.
    let message = message(&body(Some(&extension(51, &[1; 40_000]))));
    let wire = records(&message, 1);
    assert!(wire.len() > WIRE_BYTES_MAX);
    assert_eq!(
        Scan::default().advance(&wire[..WIRE_BYTES_MAX]),
        Err(NoHello::Malformed)
    );
}

#[test]
fn bytes_that_are_no_tls_are_told_at_once() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x80\x2e\x01\x03\x01", // SSL 2
        b"\x15\x03\x01",         // an alert
        b"\x17\x03\x03",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x04\x02", // a ServerHello
        b"SSH-2.0-",
        b"\0",
    ] {
        assert_eq!(whole(bytes), Err(NoHello::NotTls), "{bytes:?}");
    }
    assert_eq!(whole(b""), Ok(None));
    assert_eq!(whole(b"\x16\x03\x01\x00\x04"), Ok(None));
}

#[test]
fn hello_without_extensions_names_nobody() {
    let wire = records(&message(&body(None)), 99);
    assert_eq!(whole(&wire), Ok(Some(ClientHello::default())));
}

#[test]
fn malformed_hellos_are_refused() {
    let good = names(&[(0, b"a.example")]);
    let alpn = |list: &[u8]| extension(EXTENSION_ALPN, list);
    let versions = |list: &[u8]| extension(EXTENSION_SUPPORTED_VERSIONS, list);
    let corpus: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("no random", vec![3, 3, 1]),
        ("session id too long", {
            let mut body = body(Some(&good));
            body[34] = 33;
            body
        }),
        ("odd cipher suites", {
            let mut body = body(None);
            body[68] = 1;
            body
        }),
        ("trailing bytes", [body(Some(&good)), vec![0]].concat()),
        ("extensions cut", {
            let mut body = body(Some(&good));
            body.pop();
            body
        }),
        ("two names", body(Some(&names(&[(0, b"a"), (0, b"b")])))),
        ("two extensions", body(Some(&[&good[..], &good].concat()))),
        ("no name in the list", body(Some(&names(&[])))),
        (
            "trailing bytes of the list",
            body(Some(&extension(0, &[0, 4, 0, 0, 1, b'a', 9]))),
        ),
        ("empty protocol", body(Some(&alpn(&[0, 1, 0])))),
        ("no protocols", body(Some(&alpn(&[0, 0])))),
        ("half a version", body(Some(&versions(&[1, 3])))),
        ("no versions", body(Some(&versions(&[0])))),
    ];
    for (what, body) in corpus {
        let wire = records(&message(&body), 1 << 14);
        assert_eq!(whole(&wire), Err(NoHello::Malformed), "{what}");
    }
    let names: [&[u8]; 9] = [
        b"",
        b".",
        b"a..b",
        b".a",
        b"a b",
        b"a\0b",
        b"*.a",
        "ä".as_bytes(),
        &[b'a'; 64],
    ];
    for name in names {
        assert_eq!(with_name(name), Err(NoHello::Malformed), "{name:?}");
    }
    let dots = [b'a'; 63];
    let long = [&dots[..], b".", &dots, b".", &dots, b".", &dots[..]].concat();
    assert_eq!(with_name(&long), Err(NoHello::Malformed), "255 bytes");
}

#[test]
fn malformed_records_are_refused() {
    let wire = records(&message(&body(None)), 8);
    for (what, at, byte) in [
        ("an alert between", 13, 21_u8),
        ("another version between", 14, 2),
        ("an empty record", 17, 0),
        ("too long a record", 16, 0x41),
        ("another message", 5, 2),
    ] {
        let mut wire = wire.clone();
        wire[at] = byte;
        assert!(whole(&wire).is_err(), "{what}");
    }
}

#[test]
fn server_name_is_lower_case_without_trailing_dot() {
    for (sent, seen) in [
        (&b"A.Example."[..], "a.example"),
        (b"_x.a-b.example", "_x.a-b.example"),
        (b"localhost", "localhost"),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
    ] {
        let hello = with_name(sent).unwrap().unwrap();
        assert_eq!(hello.server_name.as_deref(), Some(seen));
    }
    let other = names(&[(1, b"whatever"), (0, b"a.example")]);
    let hello = whole(&records(&message(&body(Some(&other))), 99));
    let hello = hello.unwrap().unwrap();
    assert_eq!(hello.server_name.as_deref(), Some("a.example"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn hello_in_any_segments_and_records_gives_the_same_answer(
        record in 1_usize..2000,
        sizes in prop::collection::vec(1_usize..400, 0..200),
    ) {
        let wire = real("v1.shop.example", &[b"h2"]);
        let expected = whole(&wire);
        let wire = records(&wire[RECORD_HEADER..], record);
        prop_assert_eq!(in_segments(&wire, sizes), expected);
    }

    #[test]
    fn mutated_hellos_never_panic_and_never_depend_on_segments(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        split in any::<prop::sample::Index>(),
    ) {
        let mut wire = real("v1.shop.example", &[b"h2"]);
        for (at, byte) in changes {
            let at = at.index(wire.len().min(200));
            wire[at] = byte;
        }
        wire.truncate(1 + cut.index(wire.len()));
        let at = split.index(wire.len());
        prop_assert_eq!(in_segments(&wire, [at, wire.len() - at]), whole(&wire));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _any = whole(&bytes);
        let _any = whole(&records(&message(&bytes), 100));
        let _any = parse(&bytes);
    }
}
