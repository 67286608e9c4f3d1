//! Filters.

use std::collections::HashMap;

use super::Check;
use crate::config::{path::Trail, report::Code, text::shown, tree::Node};

/// Types of filters, and the field that each needs.
const FILTER_FIELDS: [(&str, &str); 7] = [
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
    ("ExtensionRef", "extensionRef"),
];

impl Check<'_> {
    pub(super) fn filters(&mut self, holder: &Node, one_prefix: bool, trail: Trail<'_>) {
        let filters = holder.items("filters");
        let at = trail.key("filters");
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (index, filter) in filters.iter().enumerate() {
            let here = at.at(index);
            let Some(kind) = filter.text("type") else {
                continue;
            };
            // A request may be mirrored to several, and extensions are their own.
            let repeats = matches!(kind, "RequestMirror" | "ExtensionRef");
            if let Some(first) = seen.insert(kind, index).filter(|_| !repeats) {
                let message = format!("`{}` is filter {first} too", shown(kind));
                self.error(Code::Duplicate, filter, here, message, "each type once");
            }
            self.filter(filter, kind, one_prefix, here);
        }
        if let (Some(_), Some(second)) = (seen.get("RequestRedirect"), seen.get("URLRewrite"))
            && let Some(filter) = filters.get(*second)
        {
            let message = "a redirect and a rewrite exclude each other";
            self.error(
                Code::Conflict,
                filter,
                at.at(*second),
                message,
                "one of them",
            );
        }
    }

    fn filter(&mut self, filter: &Node, kind: &str, one_prefix: bool, trail: Trail<'_>) {
        for (of, field) in FILTER_FIELDS {
            let given = filter.get(field);
            if kind == of && given.is_none() {
                let message = format!("the field `{field}` is missing");
                let expected = format!("`{field}`, which `type: {of}` means");
                self.error(
                    Code::MissingField,
                    filter,
                    trail.key(field),
                    message,
                    expected,
                );
            }
            if let Some(node) = given.filter(|_| kind != of) {
                let message = format!("`{field}` stands beside `type: {}`", shown(kind));
                self.error(
                    Code::Conflict,
                    node,
                    trail.key(field),
                    message,
                    format!("`type: {of}`"),
                );
            }
        }
        for field in ["requestHeaderModifier", "responseHeaderModifier"] {
            if let Some(edits) = filter.get(field) {
                let at = trail.key(field);
                for list in ["set", "add"] {
                    self.set(edits.items(list), at.key(list), |item| {
                        item.text("name").map(str::to_owned)
                    });
                }
                self.set(edits.items("remove"), at.key("remove"), |item| {
                    item.as_text().map(str::to_owned)
                });
            }
        }
        for field in ["requestRedirect", "urlRewrite"] {
            if let Some(path) = filter.get(field).and_then(|of| of.get("path")) {
                let at = trail.key(field);
                self.path_modifier(path, one_prefix, at.key("path"));
            }
        }
        if let Some(redirect) = filter.get("requestRedirect")
            && let Some(status) = redirect.get("statusCode")
            && !matches!(status.as_int(), Some(301_u16 | 302 | 303 | 307 | 308))
        {
            let at = trail.key("requestRedirect");
            self.error(
                Code::OutOfRange,
                status,
                at.key("statusCode"),
                "this status is no redirect",
                "301, 302, 303, 307 or 308",
            );
        }
        if let Some(mirror) = filter.get("requestMirror") {
            self.mirror(mirror, trail.key("requestMirror"));
        }
        if let Some(cors) = filter.get("cors") {
            let at = trail.key("cors");
            for field in [
                "allowOrigins",
                "allowMethods",
                "allowHeaders",
                "exposeHeaders",
            ] {
                let items = cors.items(field);
                self.set(items, at.key(field), |item| {
                    item.as_text().map(str::to_owned)
                });
                let star = items.iter().find(|item| item.as_text() == Some("*"));
                if let Some(star) = star.filter(|_| items.len() > 1 && field != "exposeHeaders") {
                    self.error(
                        Code::Conflict,
                        star,
                        at.key(field),
                        "`*` stands beside others",
                        "`*` alone, or the others",
                    );
                }
            }
        }
    }

    fn path_modifier(&mut self, path: &Node, one_prefix: bool, trail: Trail<'_>) {
        let kind = path.text("type").unwrap_or_default();
        for (of, field) in [
            ("ReplaceFullPath", "replaceFullPath"),
            ("ReplacePrefixMatch", "replacePrefixMatch"),
        ] {
            let given = path.get(field);
            if kind == of && given.is_none() {
                let message = format!("the field `{field}` is missing");
                self.error(
                    Code::MissingField,
                    path,
                    trail.key(field),
                    message,
                    format!("`{field}`, which `type: {of}` means"),
                );
            }
            if let Some(node) = given.filter(|_| kind != of && !kind.is_empty()) {
                let message = format!("`{field}` stands beside `type: {kind}`");
                self.error(
                    Code::Conflict,
                    node,
                    trail.key(field),
                    message,
                    format!("`type: {of}`"),
                );
            }
        }
        if kind == "ReplacePrefixMatch" && !one_prefix {
            let message =
                "a prefix is replaced, and the rule has not exactly one match, of a prefix";
            let expected = "one entry in `matches`, with a path of type PathPrefix";
            self.error(Code::Conflict, path, trail, message, expected);
        }
    }

    fn mirror(&mut self, mirror: &Node, trail: Trail<'_>) {
        if let Some(backend) = mirror.get("backendRef") {
            self.reference(backend, trail.key("backendRef"));
        }
        let fraction = mirror.get("fraction");
        if let Some(fraction) = fraction.filter(|_| mirror.get("percent").is_some()) {
            self.error(
                Code::Conflict,
                fraction,
                trail.key("fraction"),
                "`fraction` and `percent` exclude each other",
                "one of them",
            );
        }
        if let Some(fraction) = fraction {
            let of = |name| fraction.int::<i64>(name);
            if of("numerator") > Some(of("denominator").unwrap_or(100)) {
                self.error(
                    Code::OutOfRange,
                    fraction,
                    trail.key("fraction"),
                    "`numerator` is larger than `denominator`",
                    "at most `denominator`, which is 100 when absent",
                );
            }
        }
    }
}
