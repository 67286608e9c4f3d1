//! Gateway API objects, as Kubernetes has them, beside the mesh's own configuration.
//!
//! ```text
//! documents -> shapes (form) -> check (validation rules) -> object (values, defaults)
//!           -> translate (which port, for whom, in which order) -> rules (what happens) -> the model
//!                                                               -> status (conditions)
//! ```
//! What the API server would refuse is refused here, with its place. What a controller would say in
//! a status is a warning, and a row of `mesh config gateway`.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

mod check;
mod duration;
pub(crate) mod files;
mod node;
mod object;
mod rank;
mod refs;
mod rules;
mod shapes;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod translate;

use object::{GROUP, Grant, Meta, Route};
use translate::{Notice, Translated};

use super::{
    collect::Collector,
    locate::{head, key_span, locate},
    path::{FieldPath, Step, Trail},
    report::{Code, Severity},
    shape::Object,
    source::{Source, Span},
    suggest,
    text::{Text, shown},
    tree::{self, Node, Value},
    walk,
};
use crate::model::Model;

/// A list of the files' own field.
pub(crate) const FIELD: &str = "gateway-api";

/// What there is of Gateway API for a mesh, in the order in which kinds win a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// GRPCRoute.
    Grpc,
    /// HTTPRoute.
    Http,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
    /// ReferenceGrant.
    ReferenceGrant,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Grpc,
        Self::Http,
        Self::Tls,
        Self::Tcp,
        Self::ReferenceGrant,
    ];

    /// As the API names it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Grpc => "GRPCRoute",
            Self::Http => "HTTPRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
        }
    }

    /// Versions that are read; all by the fields and bounds of the newest.
    const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Http => &["v1", "v1beta1"],
            Self::Grpc | Self::Tcp => &["v1", "v1alpha2"],
            Self::Tls => &["v1", "v1alpha3", "v1alpha2"],
            Self::ReferenceGrant => &["v1", "v1beta1", "v1alpha2"],
        }
    }

    const fn shape(self) -> &'static Object {
        match self {
            Self::Grpc => &shapes::GRPC_ROUTE,
            Self::Http => &shapes::HTTP_ROUTE,
            Self::Tls => &shapes::TLS_ROUTE,
            Self::Tcp => &shapes::TCP_ROUTE,
            Self::ReferenceGrant => &shapes::GRANT,
        }
    }
}

/// Whether a document is a Kubernetes object rather than the mesh's own.
pub(super) fn is_object(node: &Node) -> bool {
    let version = node.text("apiVersion").unwrap_or("mesh/");
    node.text("kind") != Some(super::fields::KIND) && !version.starts_with("mesh/")
}

/// Files with objects, and what was found in them.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// The files beside the main one.
    pub(super) files: Vec<(Arc<Source>, Collector)>,
    objects: Vec<Document>,
}

/// A document.
#[derive(Debug)]
struct Document {
    /// 0: the main file; else one of [`Documents::files`], from 1.
    file: usize,
    node: Node,
}

/// All objects that can be used.
#[derive(Debug, Default)]
pub(super) struct Objects {
    routes: Vec<Route>,
    /// The document of each route.
    documents: Vec<Document>,
    grants: Vec<Grant>,
}

/// Rules that were made, and where they come from.
#[derive(Debug)]
pub(super) struct Made {
    origins: Vec<Option<(usize, usize)>>,
    notices: Vec<Notice>,
    /// How many rules the model had before.
    native: usize,
}

impl Made {
    /// Nothing was made.
    pub(super) const NOTHING: Self = Self {
        origins: Vec::new(),
        notices: Vec::new(),
        native: usize::MAX,
    };
}

impl Documents {
    /// Adds a document of the main file.
    pub(super) fn add(&mut self, node: Node) {
        self.objects.push(Document { file: 0, node });
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether a file has an error.
    pub(super) fn has_errors(&self) -> bool {
        self.files.iter().any(|(_, out)| out.has_errors())
    }

    /// Adds the documents of files that were read, or reports why they can't be.
    pub(super) fn load(&mut self, root: &Node, found: Vec<files::Found>, out: &mut Collector) {
        for file in found {
            let name = file.path.display().to_string();
            match file.text {
                Ok(text) => self.parse(&name, &text),
                Err((code, why, expected)) => {
                    let path = FieldPath::default().key(FIELD).at(file.entry);
                    let message = format!("`{name}` {why}");
                    out.error(code, locate(root, &path), path, message, Some(expected.to_owned()));
                }
            }
        }
    }

    fn parse(&mut self, name: &str, text: &str) {
        let source = Arc::new(Source::new(name, text));
        let mut out = Collector::new();
        let file = self.files.len() + 1;
        match tree::parse_all(&source) {
            Ok(nodes) => {
                let documents = nodes.into_iter().map(|node| Document { file, node });
                self.objects.extend(documents);
            }
            Err(fault) => {
                let expected = fault.expected.map(str::to_owned);
                let path = FieldPath::default();
                out.error(fault.code, fault.span, path, fault.message, expected);
            }
        }
        self.files.push((source, out));
    }

    fn collector<'c>(&'c mut self, file: usize, main: &'c mut Collector) -> &'c mut Collector {
        match file.checked_sub(1).and_then(|at| self.files.get_mut(at)) {
            Some((_, out)) => out,
            None => main,
        }
    }

    /// Where a document stands: `file:line:column`.
    fn place(&self, document: &Document, main: &Source) -> String {
        let source = match document.file.checked_sub(1).and_then(|at| self.files.get(at)) {
            Some((source, _)) => source,
            None => main,
        };
        let (line, column) = source.position(head(&document.node).start);
        format!("{}:{line}:{column}", source.name)
    }

    /// Checks all documents.
    pub(super) fn objects(&mut self, main: &Source, out: &mut Collector) -> Objects {
        let mut objects = Objects::default();
        let mut known: HashMap<(Kind, String, String), String> = HashMap::new();
        for document in flatten(std::mem::take(&mut self.objects)) {
            let mut here = Collector::new();
            let read = read(&document.node, &mut here);
            if let Some((kind, meta, _)) = &read {
                let key = (*kind, meta.namespace.clone(), meta.name.clone());
                let place = self.place(&document, main);
                if let Some(first) = known.get(&key) {
                    let message = format!("{} `{}/{}` stands at {first} too", kind.name(), meta.namespace, meta.name);
                    let path = FieldPath::default().key("metadata").key("name");
                    let span = locate(&document.node, &path);
                    here.error(Code::Duplicate, span, path, message, Some("each object once".to_owned()));
                }
                known.entry(key).or_insert(place);
            }
            let good = !here.has_errors();
            self.collector(document.file, out).absorb(here);
            let Some((kind, meta, spec)) = read.filter(|_| good) else {
                continue;
            };
            if kind == Kind::ReferenceGrant {
                objects.grants.push(object::grant(&meta, &spec));
            } else {
                objects.routes.push(object::route(kind, &meta, &spec));
                objects.documents.push(document);
            }
        }
        objects
    }

    /// Adds a warning, or another problem, at a place of a route.
    fn at(
        &mut self,
        objects: &Objects,
        route: usize,
        (severity, code, path): (Severity, Code, &FieldPath),
        (message, expected): (String, Option<String>),
        out: &mut Collector,
    ) {
        if let Some(document) = objects.documents.get(route) {
            let span = locate(&document.node, path);
            let out = self.collector(document.file, out);
            out.add(severity, code, span, path.clone(), message, expected);
        }
    }

    /// Says what translating found.
    pub(super) fn say(&mut self, objects: &Objects, made: Made, main: &Source, out: &mut Collector) {
        for notice in made.notices {
            let other = notice.other.and_then(|other| objects.documents.get(other));
            let message = match other.map(|other| self.place(other, main)) {
                Some(place) => format!("{} ({place})", notice.message),
                None => notice.message,
            };
            let what = (Severity::Warning, notice.code, &notice.path);
            let text = (message, Some(notice.expected.to_owned()));
            self.at(objects, notice.route, what, text, out);
        }
    }

    /// Says what the checks of the model found about a rule that was made from a route. False: it is
    /// about something else.
    pub(super) fn finding(
        &mut self,
        objects: &Objects,
        made: &Made,
        finding: &super::Finding,
        out: &mut Collector,
    ) -> bool {
        let [Step::Key(list), Step::Index(index), ..] = finding.path.0.as_slice() else {
            return false;
        };
        let Some(at) = index.checked_sub(made.native).filter(|_| list == "rules") else {
            return false;
        };
        if let Some(Some((route, rule))) = made.origins.get(at) {
            let path = translate::spec("rules").at(*rule);
            let what = (finding.severity, finding.code, &path);
            let text = (finding.message.clone(), finding.expected.clone());
            self.at(objects, *route, what, text, out);
        }
        true
    }
}

/// Makes rules of the routes, and adds them to the model.
pub(super) fn apply(objects: &Objects, model: &mut Model) -> Made {
    let native = model.rules.len();
    let Translated {
        rules,
        origins,
        statuses,
        notices,
    } = translate::translate(&model.services, &model.rules, &objects.routes, &objects.grants);
    model.rules.extend(rules);
    model.routes = statuses;
    Made {
        origins,
        notices,
        native,
    }
}

/// The objects of lists, as `kubectl get -o yaml` prints them, in their place.
fn flatten(documents: Vec<Document>) -> Vec<Document> {
    let mut out = Vec::new();
    for Document { file, node } in documents {
        let is_list = node.text("kind") == Some("List") && node.text("apiVersion") == Some("v1");
        let mut node = node;
        node.drop_nulls();
        let items = match &mut node.value {
            Value::Map(entries) if is_list => entries
                .iter_mut()
                .find(|(key, _)| &*key.text == "items")
                .and_then(|(_, items)| match &mut items.value {
                    Value::List(items) => Some(std::mem::take(items)),
                    _ => None,
                }),
            _ => None,
        };
        match items {
            Some(items) => out.extend(items.into_iter().map(|node| Document { file, node })),
            None => out.push(Document { file, node }),
        }
    }
    out
}

/// Checks one object. None: it is none of ours.
fn read(node: &Node, out: &mut Collector) -> Option<(Kind, Meta, Node)> {
    let kind = kind(node, out)?;
    let Value::Map(entries) = &node.value else {
        return None;
    };
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    let mut seen: Vec<&str> = Vec::new();
    for (key, _) in entries {
        let path = FieldPath::default().key(&key.text);
        if !known.contains(&&*key.text) {
            let message = format!("unknown field `{}`", shown(&key.text));
            let near = suggest::nearest(&key.text, known).map(|near| format!("`{near}`; "));
            let expected = format!("{}one of {}", near.unwrap_or_default(), known.join(", "));
            out.error(Code::UnknownField, key.span, path, message, Some(expected));
        } else if seen.contains(&&*key.text) {
            let message = format!("the key `{}` stands here twice", key.text);
            out.error(Code::DuplicateKey, key.span, path, message, Some("each key once".to_owned()));
        }
        seen.push(&key.text);
    }
    let meta = meta(node, out);
    let root = Trail::ROOT;
    let at = root.key("spec");
    let Some(spec) = node.get("spec") else {
        let message = "the field `spec` is missing".to_owned();
        let expected = Some(format!("`spec` of a {}", kind.name()));
        out.error(Code::MissingField, head(node), at.path(), message, expected);
        return None;
    };
    walk::walk_object(spec, kind.shape(), at, out);
    check::spec(kind, spec, at, out);
    Some((kind, meta, spec.clone()))
}

/// What a document is; reports what is not ours.
fn kind(node: &Node, out: &mut Collector) -> Option<Kind> {
    let text = |name| node.text(name).unwrap_or_default();
    let (version, name) = (text("apiVersion"), text("kind"));
    let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    let names = names.join(", ");
    let at = |field: &str| {
        let value = node.get(field).map(|value| value.span);
        let span: Span = value.or_else(|| key_span(node, field)).unwrap_or_else(|| head(node));
        (span, FieldPath::default().key(field))
    };
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let found = Kind::ALL.iter().find(|kind| kind.name() == name).copied();
    let Some(kind) = found.filter(|_| group == GROUP) else {
        let (span, path) = at("kind");
        let of = if group.is_empty() { String::new() } else { format!(" of {}", shown(group)) };
        let message = if name.is_empty() {
            "this is no Kubernetes object: it has no `kind`".to_owned()
        } else {
            format!("`{}`{of} is no kind that is taken", shown(name))
        };
        let expected = format!("{names} of {GROUP}");
        out.error(Code::UnknownKind, span, path, message, Some(expected));
        return None;
    };
    if !kind.versions().contains(&version) {
        let (span, path) = at("apiVersion");
        let message = format!("version `{}` of {name} is not taken", shown(version));
        let versions: Vec<_> = kind.versions().iter().map(|version| format!("{GROUP}/{version}")).collect();
        out.error(Code::UnknownKind, span, path, message, Some(versions.join(", ")));
        return None;
    }
    Some(kind)
}

/// Reads `metadata`: name, namespace and time. Everything else there is the cluster's.
fn meta(node: &Node, out: &mut Collector) -> Meta {
    let nothing = Node {
        span: Span::default(),
        value: Value::Null,
    };
    let metadata = node.get("metadata").unwrap_or(&nothing);
    let path = |name: &str| FieldPath::default().key("metadata").key(name);
    let mut check = |name: &'static str, needed: bool, good: &dyn Fn(&str) -> bool, expected: &str| {
        let value = metadata.get(name);
        let text = value.and_then(Node::as_text);
        if text.is_some_and(good) || (value.is_none() && !needed) {
            return text.map(str::to_owned);
        }
        let path = path(name);
        let span = locate(node, &path);
        let (code, message) = match (value, text) {
            (None, _) => (Code::MissingField, format!("the field `{name}` is missing")),
            (Some(_), None) => (Code::WrongType, format!("`{name}` is no text")),
            (_, Some(text)) => (Code::BadValue, format!("`{}` is not allowed here", shown(text))),
        };
        out.error(code, span, path, message, Some(expected.to_owned()));
        None
    };
    let name = check("name", true, &text::is_subdomain, "a name: lower-case letters, digits, `-`, `.`");
    let namespace = check("namespace", false, &text::is_label, "a namespace: lower-case letters, digits, `-`");
    let created = check("creationTimestamp", false, &is_time, "a time such as 2025-01-31T12:00:00Z");
    Meta {
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        name: name.unwrap_or_default(),
        generation: metadata.int("generation").unwrap_or(0),
        created,
    }
}

/// As Kubernetes writes times: RFC 3339 in UTC, whole seconds. So they sort as text.
fn is_time(text: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    text.len() == FORM.len()
        && text.bytes().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == *form,
        })
}

/// A path in `gateway-api`.
pub(super) static PATH: super::text::Given = super::text::Given {
    name: "the path of a file or folder, relative to the folder of this file",
    length: (1, 4095),
    pattern: Some(r"^[^\x00]+$"),
    holds: |text| !text.contains('\0'),
};

/// The kind of text that it is.
pub(super) const PATH_TEXT: Text = Text::Given(&PATH);

/// What `gateway-api` names, below `base`.
pub(super) fn entries(root: &Node, base: &std::path::Path) -> Vec<PathBuf> {
    let items = root.items(FIELD).iter();
    items
        .map(|item| base.join(item.as_text().unwrap_or_default()))
        .collect()
}
