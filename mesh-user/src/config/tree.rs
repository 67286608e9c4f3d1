//! YAML text to a tree whose nodes know where they stand.
//!
//! Serde stops at the first value that does not fit. This tree lets the check walk on and report
//! every problem of a file at once. Values follow the core schema of YAML 1.2.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, options};

use super::{
    report::Code,
    source::{Source, Span},
};

/// Deepest nesting. The deepest field of the schema is at 8.
pub(crate) const DEPTH_MAX: usize = 32;
/// Most values, aliases expanded: twice what 100,000 rules hold. Each takes about 100 bytes.
pub(crate) const NODES_MAX: usize = 2_000_000;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Where it stands.
    pub(crate) span: Span,
    /// What it is.
    pub(crate) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number. What does not fit saturates: every range check refuses it.
    Int(i128),
    /// Another number.
    Float,
    /// Text.
    Text(Box<str>),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the file; keys may repeat.
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Where it stands.
    pub(crate) span: Span,
    /// Its text.
    pub(crate) text: Box<str>,
}

impl Node {
    /// The first value at a key.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(key, _)| &*key.text == name)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    /// How many values it holds, itself included.
    fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|(_, node)| node.count()).sum(),
            _ => 0,
        }
    }

    /// How deep it nests: 0 for a scalar.
    fn height(&self) -> usize {
        match &self.value {
            Value::List(items) => 1 + items.iter().map(Self::height).max().unwrap_or(0),
            Value::Map(entries) => {
                1 + entries
                    .iter()
                    .map(|(_, node)| node.height())
                    .max()
                    .unwrap_or(0)
            }
            _ => 0,
        }
    }
}

/// Why a text is not one YAML document: name, place, message, what would be right.
#[derive(Debug)]
pub(crate) struct TreeFault {
    pub(crate) code: Code,
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) expected: Option<&'static str>,
}

/// A list or mapping that is not finished.
struct Open {
    span: Span,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map(Vec<(Key, Node)>, Option<Key>),
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    root: Option<Node>,
    /// The documents before the one that is open.
    done: Vec<Node>,
    /// Whether there may be several documents.
    several: bool,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

/// Reads one document. None: there is none.
///
/// # Errors
/// The first thing that is not YAML, or not within bounds.
pub(crate) fn parse(source: &Source) -> Result<Option<Node>, TreeFault> {
    Ok(build(source, false)?.root)
}

/// Reads all documents; those with nothing in them are left out.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_all(source: &Source) -> Result<Vec<Node>, TreeFault> {
    let Builder { root, mut done, .. } = build(source, true)?;
    done.extend(root);
    done.retain(|node| !matches!(node.value, Value::Null));
    Ok(done)
}

fn build(source: &Source, several: bool) -> Result<Builder, TreeFault> {
    let options = options! {
        emit_comments: false,
        disallow_directives: true,
        // One more than ours, so that the message is ours.
        flow_nesting_limit: DEPTH_MAX + 8,
        block_nesting_limit: DEPTH_MAX + 8,
    };
    let mut builder = Builder {
        several,
        ..Builder::default()
    };
    for next in Parser::new_from_str_with_options(&source.text, options) {
        let (event, span) = next.map_err(|error| scan_fault(&error, source))?;
        let span = convert(span, source);
        builder.event(event, span)?;
    }
    Ok(builder)
}

fn convert(span: granit_parser::Span, source: &Source) -> Span {
    let range = span.byte_range().unwrap_or(0..0);
    let clamp = |at: usize| u32::try_from(at.min(source.text.len())).unwrap_or(u32::MAX);
    Span {
        start: clamp(range.start),
        end: clamp(range.end),
    }
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), TreeFault> {
        if event.tag().is_some() {
            return Err(TreeFault {
                code: Code::YamlTag,
                span,
                message: "a YAML tag stands before this value".to_owned(),
                expected: Some("the value alone; quote it to make it text"),
            });
        }
        match event {
            Event::DocumentStart(..) if self.several => {
                self.done.extend(self.root.take());
                // An alias names a value of its own document (YAML 1.2 §3.2.2.2).
                self.anchors.clear();
                Ok(())
            }
            Event::DocumentStart(..) if self.root.is_some() => Err(TreeFault {
                code: Code::YamlSecondDocument,
                span,
                message: "a second YAML document begins here".to_owned(),
                expected: Some("one document in a file"),
            }),
            Event::Scalar(text, style, anchor, _) => {
                // At a mapping's key position the text stays text: `true:` is a name there.
                if let Some(Open {
                    kind: OpenKind::Map(_, pending @ None),
                    ..
                }) = self.stack.last_mut()
                {
                    *pending = Some(Key {
                        span,
                        text: text.into(),
                    });
                    return Ok(());
                }
                let node = Node {
                    span,
                    value: scalar(text.into(), style),
                };
                self.spend(1, span)?;
                self.place(node, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open(span, anchor, OpenKind::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, _) => {
                self.open(span, anchor, OpenKind::Map(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(anchor) => self.alias(anchor, span),
            _ => Ok(()),
        }
    }

    /// Counts values against the bound.
    fn spend(&mut self, nodes: usize, span: Span) -> Result<(), TreeFault> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        Err(TreeFault {
            code: Code::YamlTooLarge,
            span,
            message: format!("the file holds more than {NODES_MAX} values, aliases expanded"),
            expected: Some("a smaller file, with fewer aliases"),
        })
    }

    fn key_expected(&self) -> bool {
        matches!(
            self.stack.last(),
            Some(Open {
                kind: OpenKind::Map(_, None),
                ..
            })
        )
    }

    fn open(&mut self, span: Span, anchor: usize, kind: OpenKind) -> Result<(), TreeFault> {
        if self.key_expected() {
            return Err(bad_key(span));
        }
        if self.stack.len() >= DEPTH_MAX {
            return Err(too_deep(span));
        }
        self.spend(1, span)?;
        self.stack.push(Open { span, anchor, kind });
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<(), TreeFault> {
        let Some(open) = self.stack.pop() else {
            return Ok(());
        };
        let value = match open.kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map(entries, _) => Value::Map(entries),
        };
        let span = Span {
            start: open.span.start,
            end: end.end.max(open.span.end),
        };
        self.place(Node { span, value }, open.anchor)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), TreeFault> {
        if self.key_expected() {
            return Err(bad_key(span));
        }
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(TreeFault {
                code: Code::YamlAliasLoop,
                span,
                message: "this alias stands inside the value that it names".to_owned(),
                expected: Some("an alias of a value that ends before it"),
            });
        };
        // Counted before it is copied: nine lines of nine aliases each would fill the memory.
        let (count, height) = (node.count(), node.height());
        self.spend(count, span)?;
        if self.stack.len() + height > DEPTH_MAX {
            return Err(too_deep(span));
        }
        match self.anchors.get(&anchor).cloned() {
            Some(node) => self.place(node, 0),
            None => Ok(()),
        }
    }

    fn place(&mut self, node: Node, anchor: usize) -> Result<(), TreeFault> {
        if anchor != 0 {
            self.spend(node.count(), node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut().map(|open| &mut open.kind) {
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map(entries, pending)) => {
                if let Some(key) = pending.take() {
                    entries.push((key, node));
                }
            }
            None => self.root = Some(node),
        }
        Ok(())
    }
}

fn bad_key(span: Span) -> TreeFault {
    TreeFault {
        code: Code::YamlKey,
        span,
        message: "a list, mapping or alias stands as a key".to_owned(),
        expected: Some("text as a key"),
    }
}

fn too_deep(span: Span) -> TreeFault {
    TreeFault {
        code: Code::YamlTooDeep,
        span,
        message: format!("lists and mappings are nested deeper than {DEPTH_MAX}"),
        expected: Some("fewer levels"),
    }
}

/// A scalar by the core schema of YAML 1.2 (§10.3.2).
fn scalar(text: Box<str>, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text);
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        other => number(other).unwrap_or(Value::Text(text)),
    }
}

fn number(text: &str) -> Option<Value> {
    let radix = |digits: &str, radix| {
        let fits = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        fits.then(|| Value::Int(i128::from_str_radix(digits, radix).unwrap_or(i128::MAX)))
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let edge = if text.starts_with('-') {
            i128::MIN
        } else {
            i128::MAX
        };
        return Some(Value::Int(text.parse().unwrap_or(edge)));
    }
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Value::Float);
    }
    // Rust also reads `inf` and `nan`, which YAML takes as text.
    let first = digits.bytes().next()?;
    let number = (first.is_ascii_digit() || first == b'.') && text.parse::<f64>().is_ok();
    number.then_some(Value::Float)
}

fn scan_fault(error: &ScanError, source: &Source) -> TreeFault {
    let at = error
        .marker()
        .byte_offset()
        .unwrap_or(0)
        .min(source.text.len());
    let start = u32::try_from(at).unwrap_or(u32::MAX);
    let span = Span { start, end: start };
    match error.kind() {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabAtBlockScalarStart => tab(span),
        _ if tab_indents(source, start) => tab(span),
        ErrorKind::RecursionLimitExceeded => too_deep(span),
        ErrorKind::UnknownAnchor => TreeFault {
            code: Code::YamlUnknownAlias,
            span,
            message: "this alias names nothing that stands before it".to_owned(),
            expected: Some("a value marked with `&name` before `*name`"),
        },
        _ => TreeFault {
            code: Code::YamlSyntax,
            span,
            message: format!("not YAML: {}", error.info()),
            expected: None,
        },
    }
}

fn tab(span: Span) -> TreeFault {
    TreeFault {
        code: Code::YamlTab,
        span,
        message: "a tab stands in the indentation".to_owned(),
        expected: Some("spaces: YAML does not indent with tabs"),
    }
}

/// Whether the line of a byte is indented with a tab, which the scanner reports in many ways.
fn tab_indents(source: &Source, byte: u32) -> bool {
    let (line, _) = source.position(byte);
    source.line(line).is_some_and(|line| {
        line.chars()
            .take_while(|c| c.is_whitespace())
            .any(|c| c == '\t')
    })
}

#[cfg(test)]
mod tests;
