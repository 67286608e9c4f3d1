//! What a rule does besides choosing a version.

use std::time::Duration;

use super::{Reader, reader, rules};
use crate::{
    config::{collect::Collector, path::FieldPath},
    model::{
        Actions, Backend, RuleExtra, Select, Service, Target,
        action::{
            AbortStatus, Cors, DirectResponse, Fault, Fraction, HeaderEdits, Mirror, PathRewrite,
            Persistence, Redirect, Rewrite, SessionCarrier, Sticky, Terminal,
        },
    },
};

/// Where the destinations of rules are found.
pub(super) struct Services<'a> {
    pub(super) index: &'a rules::Index,
    pub(super) list: &'a [Service],
}

impl Services<'_> {
    /// A target or mirror, its weight aside.
    pub(super) fn target(&self, from: Reader<'_>, item: &FieldPath, out: &mut Collector) -> Target {
        let select = if let Some(version) = from.text("version") {
            Select::Version(version.to_owned())
        } else if from.has("tags") {
            Select::Tags(from.tags("tags"))
        } else if from.has("endpoints") {
            let nodes = from.nodes("endpoints").iter();
            let addresses = nodes.filter_map(|node| reader::text(node)?.parse().ok());
            Select::Endpoints(addresses.collect())
        } else {
            Select::All
        };
        Target {
            select,
            backend: from.has("service").then(|| self.backend(from, item, out)),
            ..Target::default()
        }
    }

    /// A port that is not there is 0: the checks report it.
    fn backend(&self, from: Reader<'_>, item: &FieldPath, out: &mut Collector) -> Backend {
        let service = self.index.resolve(from, item, out);
        let of = self.list.get(service);
        let port = match rules::port_name(from, of) {
            Some(name) => {
                let mut ports = of.iter().flat_map(|service| &service.ports);
                let named = ports.find(|port| port.name == name).map(|port| port.number);
                named.or_else(|| name.parse().ok())
            }
            None => match of.map(|service| service.ports.as_slice()) {
                Some([only]) => Some(only.number),
                _ => None,
            },
        };
        Backend {
            service,
            port: port.unwrap_or(0),
        }
    }

    /// What a rule does; beside it the other parts of [`RuleExtra`] that are this file's.
    pub(super) fn rule(
        &self,
        from: Reader<'_>,
        item: &FieldPath,
        out: &mut Collector,
        mut extra: RuleExtra,
    ) -> Option<Box<RuleExtra>> {
        extra.actions = self.actions(from, item, out);
        extra.actions.cors = from.has("cors").then(|| cors(from.object("cors")));
        extra.sticky = from.has("sticky").then(|| sticky(from.object("sticky")));
        extra.persistence = from.has("session").then(|| session(from.object("session")));
        (extra != RuleExtra::NOTHING).then(|| Box::new(extra))
    }

    /// What is done on the way to one target alone.
    pub(super) fn of_target(
        &self,
        from: Reader<'_>,
        item: &FieldPath,
        out: &mut Collector,
    ) -> Option<Box<Actions>> {
        let actions = self.actions(from, item, out);
        (actions != Actions::NOTHING).then(|| Box::new(actions))
    }

    /// What rules and targets have in common.
    fn actions(&self, from: Reader<'_>, item: &FieldPath, out: &mut Collector) -> Actions {
        let headers = from.object("headers");
        let redirect = from
            .has("redirect")
            .then(|| Terminal::Redirect(redirect(from.object("redirect"))));
        let respond = from
            .has("respond")
            .then(|| Terminal::Respond(respond(from.object("respond"))));
        let mirrors = from.items("mirror").enumerate();
        let mirrors = mirrors.map(|(k, mirror)| {
            let path = item.key("mirror").at(k);
            Mirror {
                target: self.target(mirror, &path, out),
                fraction: fraction(mirror),
                compare: mirror.bool("compare").unwrap_or(false),
            }
        });
        Actions {
            mirrors: mirrors.collect(),
            request_headers: edits(headers.object("request")),
            response_headers: edits(headers.object("response")),
            rewrite: from.has("rewrite").then(|| rewrite(from.object("rewrite"))),
            terminal: redirect.or(respond),
            cors: None,
            fault: from.has("fault").then(|| fault(from.object("fault"))),
        }
    }
}

fn pairs(from: Reader<'_>, name: &str) -> Vec<(String, String)> {
    from.entries(name)
        .filter_map(|(name, node)| {
            Some((name.to_ascii_lowercase(), reader::text(node)?.to_owned()))
        })
        .collect()
}

fn list(from: Reader<'_>, name: &str) -> Vec<String> {
    let texts = from.nodes(name).iter().filter_map(reader::text);
    texts.map(str::to_owned).collect()
}

fn names(from: Reader<'_>, name: &str) -> Vec<String> {
    let names = list(from, name).into_iter();
    names.map(|name| name.to_ascii_lowercase()).collect()
}

fn edits(from: Reader<'_>) -> HeaderEdits {
    if from.is_empty() {
        return HeaderEdits::NOTHING;
    }
    HeaderEdits {
        set: pairs(from, "set"),
        add: pairs(from, "add"),
        remove: names(from, "remove"),
    }
}

fn path(from: Reader<'_>) -> Option<PathRewrite> {
    let full = from.text("path");
    let prefix = from.text("prefix");
    full.map(|path| PathRewrite::Full(path.to_owned()))
        .or_else(|| prefix.map(|path| PathRewrite::Prefix(path.to_owned())))
}

fn rewrite(from: Reader<'_>) -> Rewrite {
    Rewrite {
        hostname: from.text("authority").map(str::to_owned),
        path: path(from),
    }
}

fn redirect(from: Reader<'_>) -> Redirect {
    Redirect {
        scheme: from.text("scheme").map(str::to_owned),
        hostname: from.text("host").map(str::to_owned),
        port: from.int("port"),
        path: path(from),
        status: from.int("status").unwrap_or(302),
    }
}

fn respond(from: Reader<'_>) -> DirectResponse {
    DirectResponse {
        status: from.int("status").unwrap_or(200),
        headers: pairs(from, "headers"),
        body: from.text("body").unwrap_or_default().to_owned(),
    }
}

fn fraction(from: Reader<'_>) -> Fraction {
    if from.has("fraction") {
        let fraction = from.object("fraction");
        return Fraction {
            numerator: fraction.int("count").unwrap_or(0),
            denominator: fraction.int("of").unwrap_or(1),
        };
    }
    match from.int("percent") {
        Some(percent) => Fraction {
            // Out of range is reported already.
            numerator: u32::min(percent, 100),
            denominator: 100,
        },
        None => Fraction::ALL,
    }
}

fn fault(from: Reader<'_>) -> Fault {
    let delay = || {
        let delay = from.object("delay");
        (fraction(delay), delay.duration("time").unwrap_or_default())
    };
    let abort = || {
        let abort = from.object("abort");
        let status = match abort.int("grpc-status") {
            Some(status) => AbortStatus::Grpc(status),
            None => AbortStatus::Http(abort.int("status").unwrap_or(500)),
        };
        (fraction(abort), status)
    };
    Fault {
        delay: from.has("delay").then(delay),
        abort: from.has("abort").then(abort),
    }
}

fn cors(from: Reader<'_>) -> Cors {
    let age = from.duration("max-age").unwrap_or(Duration::from_secs(5));
    Cors {
        allow_origins: list(from, "allow-origins"),
        allow_methods: list(from, "allow-methods"),
        allow_headers: list(from, "allow-headers"),
        expose_headers: list(from, "expose-headers"),
        allow_credentials: from.bool("allow-credentials").unwrap_or(false),
        max_age_s: u32::try_from(age.as_secs()).unwrap_or(u32::MAX),
    }
}

fn sticky(from: Reader<'_>) -> Sticky {
    let keys = from.nodes("key").iter();
    Sticky {
        key: keys
            .filter_map(|node| reader::text(node)?.parse().ok())
            .collect(),
        salt: from.text("salt").unwrap_or_default().to_owned(),
    }
}

fn session(from: Reader<'_>) -> Persistence {
    let carrier = match (from.has("header"), from.bool("permanent")) {
        (true, _) => SessionCarrier::Header,
        (false, Some(true)) => SessionCarrier::PermanentCookie,
        (false, _) => SessionCarrier::SessionCookie,
    };
    let name = from.text("cookie").map(str::to_owned);
    let header = from.text("header").map(str::to_ascii_lowercase);
    Persistence {
        name: name.or(header).unwrap_or_default(),
        carrier,
        absolute: from.duration("absolute-timeout"),
        idle: from.duration("idle-timeout"),
        salt: from.text("salt").unwrap_or_default().to_owned(),
    }
}
