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

mod attach;
mod check;
mod document;
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

use document::{flatten, read};
use object::{Grant, Route};
use translate::{Notice, Translated};

use super::{
    collect::Collector,
    locate::{head, locate},
    path::{FieldPath, Step},
    report::{Code, Severity},
    shape::Object,
    source::Source,
    text::Text,
    tree::{self, Node},
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
                    out.error(
                        code,
                        locate(root, &path),
                        path,
                        message,
                        Some(expected.to_owned()),
                    );
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
        let source = match document
            .file
            .checked_sub(1)
            .and_then(|at| self.files.get(at))
        {
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
                    let message = format!(
                        "{} `{}/{}` stands at {first} too",
                        kind.name(),
                        meta.namespace,
                        meta.name
                    );
                    let path = FieldPath::default().key("metadata").key("name");
                    let span = locate(&document.node, &path);
                    here.error(
                        Code::Duplicate,
                        span,
                        path,
                        message,
                        Some("each object once".to_owned()),
                    );
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
    pub(super) fn say(
        &mut self,
        objects: &Objects,
        made: Made,
        main: &Source,
        out: &mut Collector,
    ) {
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
    } = translate::translate(
        &model.services,
        &model.rules,
        &objects.routes,
        &objects.grants,
    );
    model.rules.extend(rules);
    model.routes = statuses;
    Made {
        origins,
        notices,
        native,
    }
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
