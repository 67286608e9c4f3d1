//! nginx. Worker and master are two processes; the master sleeps.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;

use crate::stage::{NODE, Running, SERVER_PORT, Stage};

const PORT: u16 = 8081;

pub(super) fn start(stage: &Stage, program: &Path) -> Result<(SocketAddr, Running)> {
    let dir = stage.dir.display();
    let (v1, v2) = (stage.v1.v4, stage.v2.v4);
    // A random split by connection and request: `split_clients` hashes its key.
    let config = format!(
        "worker_processes 1;
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log crit;
worker_rlimit_nofile 20000;
events {{ worker_connections 10000; use epoll; }}
http {{
    access_log off;
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    limit_req_zone $binary_remote_addr zone=rate:1m rate=1000000r/s;
    limit_conn_zone $server_name zone=open:1m;
    split_clients \"$connection.$connection_requests\" $share {{ 90% v1; * v2; }}
    map $http_x_user $version {{ beta v2; default $share; }}
    upstream v1 {{
        zone v1 64k;
        server {v1}:{SERVER_PORT} max_conns=1000 max_fails=5 fail_timeout=30s;
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    upstream v2 {{
        zone v2 64k;
        server {v2}:{SERVER_PORT} max_conns=1000 max_fails=5 fail_timeout=30s;
        keepalive 256;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {NODE}:{PORT} backlog=4096;
        server_name web;
        location / {{
            limit_req zone=rate burst=1000000 nodelay;
            limit_conn open 10000;
            proxy_pass http://$version;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
        }}
    }}
}}
"
    );
    let path = stage.write("nginx.conf", &config)?;
    let error_log = format!("{dir}/nginx-error.log");
    let proxy = stage.proxy("nginx", program, &["-c", &path, "-e", &error_log])?;
    Ok((SocketAddr::from((NODE, PORT)), proxy))
}
