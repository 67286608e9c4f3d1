//! The `spec` of each kind: fields and bounds of the CRDs of Gateway API v1.6 (standard channel),
//! with `retry`, `sessionPersistence` and `useDefaultGateways` of the experimental one.

use super::text as t;
use crate::config::shape::{Absent, Field, Object, Shape};

const fn make(name: &'static str, shape: Shape, absent: Absent) -> Field {
    Field {
        name,
        shape,
        absent,
        doc: "",
    }
}

const fn field(name: &'static str, shape: Shape) -> Field {
    make(name, shape, Absent::Means("see Gateway API"))
}

const fn needed(name: &'static str, shape: Shape) -> Field {
    make(name, shape, Absent::Required)
}

macro_rules! objects {
    ($($object:ident $name:literal [$($field:expr),* $(,)?];)*) => {
        $(pub(super) static $object: Object = Object {
            name: $name,
            doc: "",
            fields: &[$($field),*],
            groups: &[],
        };)*
    };
}

const fn list(of: &'static Shape, min: usize, max: usize) -> Shape {
    Shape::List {
        of,
        min,
        max,
        many_need: None,
    }
}

const fn inner(object: &'static Object) -> Shape {
    Shape::Object(object)
}

const fn int(min: i64, max: i64) -> Shape {
    Shape::Int { min, max }
}

const fn port() -> Field {
    field("port", int(1, 65_535))
}

const INT32: i64 = i32::MAX as i64;

const METHODS: &[(&str, &str)] = &[
    ("GET", ""),
    ("HEAD", ""),
    ("POST", ""),
    ("PUT", ""),
    ("DELETE", ""),
    ("CONNECT", ""),
    ("OPTIONS", ""),
    ("TRACE", ""),
    ("PATCH", ""),
];
const VALUE_TYPES: &[(&str, &str)] = &[("Exact", ""), ("RegularExpression", "")];

static CORS_METHOD: Shape = Shape::Choice(&[
    ("GET", ""),
    ("HEAD", ""),
    ("POST", ""),
    ("PUT", ""),
    ("DELETE", ""),
    ("CONNECT", ""),
    ("OPTIONS", ""),
    ("TRACE", ""),
    ("PATCH", ""),
    ("*", ""),
]);
static HOSTNAME: Shape = t::HOSTNAME;
static HEADER_NAME: Shape = t::HEADER_NAME;
static ORIGIN: Shape = t::ORIGIN;
static RETRY_CODE: Shape = int(400, 599);

objects! {
    PARENT_REF "ParentReference" [
        field("group", t::GROUP),
        field("kind", t::KIND),
        field("namespace", t::NAMESPACE),
        needed("name", t::OBJECT_NAME),
        field("sectionName", t::SECTION),
        port(),
    ];
    HEADER_FIELD "HTTPHeader" [needed("name", t::HEADER_NAME), needed("value", t::HEADER_VALUE)];
    HEADER_FILTER "HTTPHeaderFilter" [
        field("set", list(&Shape::Object(&HEADER_FIELD), 0, 16)),
        field("add", list(&Shape::Object(&HEADER_FIELD), 0, 16)),
        field("remove", list(&HEADER_NAME, 0, 16)),
    ];
    PATH_MODIFIER "HTTPPathModifier" [
        needed("type", Shape::Choice(&[("ReplaceFullPath", ""), ("ReplacePrefixMatch", "")])),
        field("replaceFullPath", t::PATH_REPLACEMENT),
        field("replacePrefixMatch", t::PATH_REPLACEMENT),
    ];
    REQUEST_REDIRECT "HTTPRequestRedirectFilter" [
        field("scheme", Shape::Choice(&[("http", ""), ("https", "")])),
        field("hostname", t::PLAIN_HOSTNAME),
        field("path", inner(&PATH_MODIFIER)),
        port(),
        field("statusCode", int(301, 308)),
    ];
    URL_REWRITE "HTTPURLRewriteFilter" [
        field("hostname", t::PLAIN_HOSTNAME),
        field("path", inner(&PATH_MODIFIER)),
    ];
    BACKEND_OBJECT "BackendObjectReference" [
        field("group", t::GROUP),
        field("kind", t::KIND),
        needed("name", t::OBJECT_NAME),
        field("namespace", t::NAMESPACE),
        port(),
    ];
    FRACTION_OF "Fraction" [
        needed("numerator", int(0, INT32)),
        field("denominator", int(1, INT32)),
    ];
    REQUEST_MIRROR "HTTPRequestMirrorFilter" [
        needed("backendRef", inner(&BACKEND_OBJECT)),
        field("percent", int(0, 100)),
        field("fraction", inner(&FRACTION_OF)),
    ];
    CORS_FILTER "HTTPCORSFilter" [
        field("allowOrigins", list(&ORIGIN, 0, 64)),
        field("allowCredentials", Shape::Bool),
        field("allowMethods", list(&CORS_METHOD, 0, 9)),
        field("allowHeaders", list(&HEADER_NAME, 0, 64)),
        field("exposeHeaders", list(&HEADER_NAME, 0, 64)),
        field("maxAge", int(1, INT32)),
    ];
    EXTENSION_REF "LocalObjectReference" [
        needed("group", t::GROUP),
        needed("kind", t::KIND),
        needed("name", t::OBJECT_NAME),
    ];
    HTTP_FILTER "HTTPRouteFilter" [
        needed("type", t::FREE),
        field("requestHeaderModifier", inner(&HEADER_FILTER)),
        field("responseHeaderModifier", inner(&HEADER_FILTER)),
        field("requestMirror", inner(&REQUEST_MIRROR)),
        field("requestRedirect", inner(&REQUEST_REDIRECT)),
        field("urlRewrite", inner(&URL_REWRITE)),
        field("cors", inner(&CORS_FILTER)),
        field("extensionRef", inner(&EXTENSION_REF)),
    ];
    GRPC_FILTER "GRPCRouteFilter" [
        needed("type", t::FREE),
        field("requestHeaderModifier", inner(&HEADER_FILTER)),
        field("responseHeaderModifier", inner(&HEADER_FILTER)),
        field("requestMirror", inner(&REQUEST_MIRROR)),
        field("extensionRef", inner(&EXTENSION_REF)),
    ];
    HTTP_BACKEND "HTTPBackendRef" [
        field("group", t::GROUP),
        field("kind", t::KIND),
        needed("name", t::OBJECT_NAME),
        field("namespace", t::NAMESPACE),
        port(),
        field("weight", int(0, 1_000_000)),
        field("filters", list(&Shape::Object(&HTTP_FILTER), 0, 16)),
    ];
    GRPC_BACKEND "GRPCBackendRef" [
        field("group", t::GROUP),
        field("kind", t::KIND),
        needed("name", t::OBJECT_NAME),
        field("namespace", t::NAMESPACE),
        port(),
        field("weight", int(0, 1_000_000)),
        field("filters", list(&Shape::Object(&GRPC_FILTER), 0, 16)),
    ];
    BACKEND "BackendRef" [
        field("group", t::GROUP),
        field("kind", t::KIND),
        needed("name", t::OBJECT_NAME),
        field("namespace", t::NAMESPACE),
        port(),
        field("weight", int(0, 1_000_000)),
    ];
    PATH_MATCH "HTTPPathMatch" [
        field("type", Shape::Choice(&[("Exact", ""), ("PathPrefix", ""), ("RegularExpression", "")])),
        field("value", t::PATH_VALUE),
    ];
    HEADER_MATCH "HTTPHeaderMatch" [
        field("type", Shape::Choice(VALUE_TYPES)),
        needed("name", t::HEADER_NAME),
        needed("value", t::HEADER_VALUE),
    ];
    QUERY_MATCH "HTTPQueryParamMatch" [
        field("type", Shape::Choice(VALUE_TYPES)),
        needed("name", t::QUERY_NAME),
        needed("value", t::QUERY_VALUE),
    ];
    HTTP_MATCH "HTTPRouteMatch" [
        field("path", inner(&PATH_MATCH)),
        field("headers", list(&Shape::Object(&HEADER_MATCH), 0, 16)),
        field("queryParams", list(&Shape::Object(&QUERY_MATCH), 0, 16)),
        field("method", Shape::Choice(METHODS)),
    ];
    GRPC_METHOD "GRPCMethodMatch" [
        field("type", Shape::Choice(VALUE_TYPES)),
        field("service", t::GRPC_NAME),
        field("method", t::GRPC_NAME),
    ];
    GRPC_MATCH "GRPCRouteMatch" [
        field("method", inner(&GRPC_METHOD)),
        field("headers", list(&Shape::Object(&HEADER_MATCH), 0, 16)),
    ];
    HTTP_TIMEOUTS "HTTPRouteTimeouts" [
        field("request", t::DURATION),
        field("backendRequest", t::DURATION),
    ];
    HTTP_RETRY "HTTPRouteRetry" [
        field("codes", list(&RETRY_CODE, 0, 64)),
        field("attempts", int(0, INT32)),
        field("backoff", t::DURATION),
    ];
    COOKIE_CONFIG "CookieConfig" [
        field("lifetimeType", Shape::Choice(&[("Permanent", ""), ("Session", "")])),
    ];
    SESSION_PERSISTENCE "SessionPersistence" [
        field("sessionName", t::SESSION_NAME),
        field("absoluteTimeout", t::DURATION),
        field("idleTimeout", t::DURATION),
        field("type", Shape::Choice(&[("Cookie", ""), ("Header", "")])),
        field("cookieConfig", inner(&COOKIE_CONFIG)),
    ];
    HTTP_RULE "HTTPRouteRule" [
        field("name", t::SECTION),
        field("matches", list(&Shape::Object(&HTTP_MATCH), 0, 64)),
        field("filters", list(&Shape::Object(&HTTP_FILTER), 0, 16)),
        field("backendRefs", list(&Shape::Object(&HTTP_BACKEND), 0, 16)),
        field("timeouts", inner(&HTTP_TIMEOUTS)),
        field("retry", inner(&HTTP_RETRY)),
        field("sessionPersistence", inner(&SESSION_PERSISTENCE)),
    ];
    GRPC_RULE "GRPCRouteRule" [
        field("name", t::SECTION),
        field("matches", list(&Shape::Object(&GRPC_MATCH), 0, 64)),
        field("filters", list(&Shape::Object(&GRPC_FILTER), 0, 16)),
        field("backendRefs", list(&Shape::Object(&GRPC_BACKEND), 0, 16)),
        field("sessionPersistence", inner(&SESSION_PERSISTENCE)),
    ];
    PLAIN_RULE "RouteRule" [
        field("name", t::SECTION),
        needed("backendRefs", list(&Shape::Object(&BACKEND), 1, 16)),
    ];
    GRANT_FROM "ReferenceGrantFrom" [
        needed("group", t::GROUP),
        needed("kind", t::KIND),
        needed("namespace", t::NAMESPACE),
    ];
    GRANT_TO "ReferenceGrantTo" [
        needed("group", t::GROUP),
        needed("kind", t::KIND),
        field("name", t::OBJECT_NAME),
    ];
}

static PARENT: Shape = Shape::Object(&PARENT_REF);

const fn parents() -> Field {
    field("parentRefs", list(&PARENT, 0, 32))
}

/// There are no Gateways here, default ones neither.
const fn defaults() -> Field {
    field(
        "useDefaultGateways",
        Shape::Choice(&[("All", ""), ("None", "")]),
    )
}

objects! {
    HTTP_ROUTE "HTTPRouteSpec" [
        parents(),
        defaults(),
        field("hostnames", list(&HOSTNAME, 0, 16)),
        field("rules", list(&Shape::Object(&HTTP_RULE), 1, 16)),
    ];
    GRPC_ROUTE "GRPCRouteSpec" [
        parents(),
        defaults(),
        field("hostnames", list(&HOSTNAME, 0, 16)),
        field("rules", list(&Shape::Object(&GRPC_RULE), 0, 16)),
    ];
    TLS_ROUTE "TLSRouteSpec" [
        parents(),
        defaults(),
        needed("hostnames", list(&HOSTNAME, 1, 1024)),
        needed("rules", list(&Shape::Object(&PLAIN_RULE), 1, 1)),
    ];
    TCP_ROUTE "TCPRouteSpec" [
        parents(),
        defaults(),
        needed("rules", list(&Shape::Object(&PLAIN_RULE), 1, 1)),
    ];
    GRANT "ReferenceGrantSpec" [
        needed("from", list(&Shape::Object(&GRANT_FROM), 1, 16)),
        needed("to", list(&Shape::Object(&GRANT_TO), 1, 16)),
    ];
}
