//! TLS: server names in rules, TLS that ends at a port, TLS towards endpoints.

use super::{Absent, Field, Object, Shape, Text, field, needed};

static SERVER_NAME: Shape = Shape::Text(Text::ServerName);
static HOSTNAME: Shape = Shape::Text(Text::Hostname);
static ADDRESS: Shape = Shape::Text(Text::Address);
static NAME_OR_ADDRESS: Shape = Shape::Either(&HOSTNAME, &ADDRESS);
static CERTIFICATE_ITEM: Shape = Shape::Object(&CERTIFICATE);
static PROTOCOL_ID: Shape = Shape::Text(Text::ProtocolId);
static ALPN: Shape = Shape::Choice(&[("h2", "HTTP/2"), ("http/1.1", "HTTP/1.1")]);
const FILE: Shape = Shape::Text(Text::AbsolutePath);
const VERSION: Field = field(
    "min-version",
    Shape::Choice(&[("TLSv1.2", "TLS 1.2 and 1.3"), ("TLSv1.3", "TLS 1.3 alone")]),
    Absent::Default("TLSv1.2", "RFC 9325 §3.1.1"),
    "Oldest version that is taken.",
);

/// Of a match.
pub(super) const SNI: Field = field(
    "sni",
    Shape::OneOrMore {
        of: &SERVER_NAME,
        max: 64,
    },
    Absent::Means("any, also none"),
    "Server name of a TLS connection, or several of which one must be it; `*.` takes the place of one \
     label or more. On ports of protocol `tls`, `auto`, or `tcp` with `tls`, and not beside \
     conditions on HTTP.",
);

/// Of a port.
pub(super) const PORT_TLS: Field = field(
    "tls",
    Shape::Object(&PORT),
    Absent::Means("bytes are taken as they come"),
    "TLS of the clients of this port.",
);

/// Of a policy.
pub(super) const POLICY_TLS: Field = field(
    "tls",
    Shape::Object(&UPSTREAM),
    Absent::Means("the service's policy, else none"),
    "TLS towards the endpoints.",
);

static PORT: Object = Object {
    name: "PortTls",
    doc: "TLS of the clients of a port.",
    fields: &[needed(
        "terminate",
        Shape::Object(&TERMINATE),
        "It ends here: requests inside are routed like any others.",
    )],
    groups: &[],
};

static TERMINATE: Object = Object {
    name: "TlsTerminate",
    doc: "TLS that ends at a port. Files are read anew when they change; what can't be used leaves \
          the last ones in force, and is told by `mesh status`.",
    fields: &[
        needed(
            "certificates",
            Shape::OneOrMore {
                of: &CERTIFICATE_ITEM,
                max: 64,
            },
            "The first that covers the client's server name is shown, else the first of all.",
        ),
        field(
            "alpn",
            Shape::OneOrMore { of: &ALPN, max: 2 },
            Absent::Means("`h2` and `http/1.1`, as far as the port's protocol allows them"),
            "What is offered, in this order.",
        ),
        VERSION,
        field(
            "client-ca",
            FILE,
            Absent::Means("clients need no certificate"),
            "PEM file with the CAs of clients' certificates: who shows none of theirs is refused.",
        ),
    ],
    groups: &[],
};

static CERTIFICATE: Object = Object {
    name: "Certificate",
    doc: "A certificate and its key.",
    fields: &[
        needed(
            "cert",
            FILE,
            "PEM file with the chain, the own certificate first.",
        ),
        needed("key", FILE, "PEM file with the key."),
    ],
    groups: &[],
};

static UPSTREAM: Object = Object {
    name: "UpstreamTls",
    doc: "TLS towards the endpoints. What the endpoint shows is verified; a failure counts as one to \
          connect.",
    fields: &[
        field(
            "mode",
            Shape::Choice(&[
                ("simple", "TLS"),
                ("off", "none, whatever a wider policy says"),
            ]),
            Absent::Default("simple", "what the field is there for"),
            "Whether there is any.",
        ),
        field(
            "sni",
            Shape::Text(Text::Hostname),
            Absent::Means(
                "the service's first hostname; without one the endpoint's address is verified",
            ),
            "The server name that is asked for, and verified.",
        ),
        field(
            "ca",
            FILE,
            Absent::Means("the system's CAs"),
            "PEM file with the CAs that are trusted.",
        ),
        field(
            "cert",
            FILE,
            Absent::Means("none is shown"),
            "PEM file with the certificate that is shown, its chain behind it.",
        ),
        field(
            "key",
            FILE,
            Absent::Means("none is shown"),
            "PEM file with its key.",
        ),
        field(
            "alpn",
            Shape::OneOrMore {
                of: &PROTOCOL_ID,
                max: 16,
            },
            Absent::Means("nothing is offered"),
            "What is offered on opaque connections. With HTTP that is what the request is spoken in.",
        ),
        field(
            "subject-alt-names",
            Shape::OneOrMore {
                of: &NAME_OR_ADDRESS,
                max: 32,
            },
            Absent::Means("`sni`"),
            "Names or addresses, one of which the certificate must carry, in place of `sni`.",
        ),
        VERSION,
        field(
            "insecure-skip-verify",
            Shape::Bool,
            Absent::Default("false", "who does not verify talks to anybody"),
            "Takes any certificate.",
        ),
    ],
    groups: &[],
};
