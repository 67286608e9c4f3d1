//! Envoy.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use anyhow::Result;

use crate::stage::{NODE, Running, SERVER_PORT, Stage};

const PORT: u16 = 8083;

pub(super) fn start(stage: &Stage, program: &Path) -> Result<(SocketAddr, Running)> {
    let config = format!(
        r#"static_resources:
  listeners:
  - address: {{socket_address: {{address: {NODE}, port_value: {PORT}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          generate_request_id: false
          route_config:
            virtual_hosts:
            - name: web
              domains: ["*"]
              routes:
              - match: {{prefix: /, headers: [{{name: x-user, string_match: {{exact: beta}}}}]}}
                route: {{cluster: v2, timeout: 0s}}
              - match: {{prefix: /}}
                route:
                  timeout: 0s
                  weighted_clusters: {{clusters: [{{name: v1, weight: 90}}, {{name: v2, weight: 10}}]}}
          http_filters:
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: limit
              token_bucket: {{max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s}}
              filter_enabled: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
              filter_enforced: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
{}{}"#,
        cluster("v1", stage.v1.v4),
        cluster("v2", stage.v2.v4)
    );
    let path = stage.write("envoy.yaml", &config)?;
    let args = [
        "-c",
        &path,
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ];
    let proxy = stage.proxy("Envoy", program, &args)?;
    Ok((SocketAddr::from((NODE, PORT)), proxy))
}

fn cluster(name: &str, address: Ipv4Addr) -> String {
    format!(
        "  - name: {name}
    type: STATIC
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    circuit_breakers: {{thresholds: [{{max_connections: 1000, max_pending_requests: 10000, max_requests: 10000, max_retries: 3}}]}}
    outlier_detection: {{consecutive_5xx: 5, interval: 10s, base_ejection_time: 30s, max_ejection_percent: 50}}
    load_assignment:
      cluster_name: {name}
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: {SERVER_PORT}}}}}}}}}]}}]
"
    )
}
