//! HAProxy.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;

use crate::stage::{NODE, Running, SERVER_PORT, Stage};

const PORT: u16 = 8082;

pub(super) fn start(stage: &Stage, program: &Path) -> Result<(SocketAddr, Running)> {
    let (v1, v2) = (stage.v1.v4, stage.v2.v4);
    // `observe` needs `check`; a check every 10 s is no load.
    let config = format!(
        "global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    default-server check inter 10s maxconn 1000 observe layer7 error-limit 5 on-error mark-down
    http-reuse always
frontend web
    bind {NODE}:{PORT} backlog 4096
    stick-table type ip size 10k expire 10s store http_req_rate(1s)
    http-request track-sc0 src
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 1000000 }}
    use_backend v2 if {{ req.hdr(x-user) -m str beta }}
    use_backend v2 if {{ rand(100) lt 10 }}
    default_backend v1
backend v1
    server v1 {v1}:{SERVER_PORT}
backend v2
    server v2 {v2}:{SERVER_PORT}
"
    );
    let path = stage.write("haproxy.cfg", &config)?;
    let proxy = stage.proxy("HAProxy", program, &["-db", "-f", &path])?;
    Ok((SocketAddr::from((NODE, PORT)), proxy))
}
