//! The description, the schema, the check and the readers say the same.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use serde_json::{Value, json};

use super::super::{
    Code, Examined, examine_text_in,
    fields::ROOT,
    shape::{Absent, Object, Shape},
    source::Source,
    tree,
};
use super::{default, plain, schema};

const EXAMPLES: [&str; 4] = [
    include_str!("../../../../examples/minimal.yaml"),
    include_str!("../../../../examples/canary.yaml"),
    include_str!("../../../../examples/limits.yaml"),
    include_str!("../../../../examples/full.yaml"),
];

fn json_of(yaml: &str) -> Value {
    plain(&tree::parse(&Source::new("x", yaml)).unwrap().unwrap())
}

/// JSON is YAML. What it names is where the examples are.
fn examine(value: &Value) -> Examined {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    examine_text_in(&examples, "x", &value.to_string())
}

/// A validator of the part of JSON Schema that the schema uses. It refuses what it does not know,
/// so that no keyword is without a test.
fn valid(schema: &Value, value: &Value, root: &Value) -> bool {
    schema
        .as_object()
        .unwrap()
        .iter()
        .all(|(keyword, argument)| {
            let each = |of: &Value| valid(of, value, root);
            let length = || value.as_str().map(|text| text.chars().count() as u64);
            let within = |have: Option<u64>, min: bool| {
                let bound = argument.as_u64().unwrap();
                have.is_none_or(|have| if min { have >= bound } else { have <= bound })
            };
            let items = || value.as_array().map(|items| items.len() as u64);
            match keyword.as_str() {
                "$schema" | "$id" | "$defs" | "title" | "description" | "default" => true,
                "$ref" => {
                    let name = argument.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                    each(&root["$defs"][name])
                }
                "type" => match argument.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    other => panic!("type {other}"),
                },
                "const" => value == argument,
                "enum" => argument.as_array().unwrap().contains(value),
                "minimum" => value
                    .as_i64()
                    .is_none_or(|have| have >= argument.as_i64().unwrap()),
                "maximum" => value
                    .as_i64()
                    .is_none_or(|have| have <= argument.as_i64().unwrap()),
                "minLength" => within(length(), true),
                "maxLength" => within(length(), false),
                "minItems" => within(items(), true),
                "maxItems" => within(items(), false),
                "maxProperties" => within(value.as_object().map(|map| map.len() as u64), false),
                "pattern" => value
                    .as_str()
                    .is_none_or(|text| fits(argument.as_str().unwrap(), text)),
                "format" => value
                    .as_str()
                    .is_none_or(|text| match argument.as_str().unwrap() {
                        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
                        "regex" => true,
                        other => panic!("format {other}"),
                    }),
                "items" => value
                    .as_array()
                    .is_none_or(|i| i.iter().all(|i| valid(argument, i, root))),
                "required" => value.as_object().is_none_or(|map| {
                    argument
                        .as_array()
                        .unwrap()
                        .iter()
                        .all(|name| map.contains_key(name.as_str().unwrap()))
                }),
                "anyOf" => argument.as_array().unwrap().iter().any(each),
                "oneOf" => {
                    argument
                        .as_array()
                        .unwrap()
                        .iter()
                        .filter(|of| each(of))
                        .count()
                        == 1
                }
                "not" => !each(argument),
                "properties" => value.as_object().is_none_or(|map| {
                    map.iter()
                        .all(|(k, v)| argument.get(k).is_none_or(|of| valid(of, v, root)))
                }),
                "additionalProperties" => value.as_object().is_none_or(|map| {
                    map.iter()
                        .filter(|(name, _)| {
                            schema
                                .pointer("/properties")
                                .and_then(|p| p.get(name))
                                .is_none()
                        })
                        .all(|(_, v)| {
                            argument
                                .as_bool()
                                .unwrap_or_else(|| valid(argument, v, root))
                        })
                }),
                "propertyNames" => value
                    .as_object()
                    .is_none_or(|map| map.keys().all(|name| valid(argument, &json!(name), root))),
                other => panic!("keyword {other}"),
            }
        })
}

/// Compiles each pattern once.
fn fits(pattern: &str, text: &str) -> bool {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, regex::Regex>> = RefCell::default();
    }
    COMPILED.with_borrow_mut(|compiled| {
        compiled
            .entry(pattern.to_owned())
            .or_insert_with(|| regex::Regex::new(pattern).unwrap())
            .is_match(text)
    })
}

/// Pointers (RFC 6901) to every value.
fn pointers(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(inner, &format!("{at}/{name}"), out);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                pointers(inner, &format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
}

/// An occurrence of a field in a file: object and field, pointer to the mapping, shape, absent.
type Place = (
    &'static str,
    &'static str,
    String,
    &'static Shape,
    &'static Absent,
);

/// Every occurrence of every field.
fn places(value: &Value, object: &'static Object, at: &str, out: &mut Vec<Place>) {
    for field in object.fields {
        if let Some(inner) = value.get(field.name) {
            out.push((
                object.name,
                field.name,
                at.to_owned(),
                &field.shape,
                &field.absent,
            ));
            places_in(inner, &field.shape, &format!("{at}/{}", field.name), out);
        }
    }
}

fn places_in(value: &Value, shape: &'static Shape, at: &str, out: &mut Vec<Place>) {
    match (shape, value) {
        (Shape::Object(object), _) => places(value, object, at, out),
        (Shape::List { of, .. } | Shape::OneOrMore { of, .. }, Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                places_in(item, of, &format!("{at}/{index}"), out);
            }
        }
        (Shape::OneOrMore { of, .. }, _) => places_in(value, of, at, out),
        (Shape::Map { of, .. }, Value::Object(map)) => {
            for (name, inner) in map {
                places_in(inner, of, &format!("{at}/{}", name.replace('/', "~1")), out);
            }
        }
        (Shape::Either(_, long), Value::Object(_)) => places_in(value, long, at, out),
        _ => {}
    }
}

/// Every field of the description.
fn all_fields(object: &'static Object, out: &mut BTreeSet<(&'static str, &'static str)>) {
    for field in object.fields {
        if out.insert((object.name, field.name)) {
            all_fields_in(&field.shape, out);
        }
    }
}

fn all_fields_in(shape: &'static Shape, out: &mut BTreeSet<(&'static str, &'static str)>) {
    match shape {
        Shape::Object(object) => all_fields(object, out),
        Shape::List { of, .. } | Shape::OneOrMore { of, .. } | Shape::Map { of, .. } => {
            all_fields_in(of, out);
        }
        Shape::Either(short, long) => {
            all_fields_in(short, out);
            all_fields_in(long, out);
        }
        _ => {}
    }
}

fn full() -> (Value, Vec<Place>) {
    let full = json_of(EXAMPLES[3]);
    let mut places_of_full = Vec::new();
    places(&full, &ROOT, "", &mut places_of_full);
    (full, places_of_full)
}

fn with(full: &Value, at: &str, name: &str, value: Option<Value>) -> Value {
    let mut out = full.clone();
    let map = out.pointer_mut(at).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => map.insert(name.to_owned(), value),
        None => map.remove(name),
    };
    out
}

#[test]
fn schema_takes_every_example() {
    let schema = schema();
    for example in EXAMPLES {
        assert!(valid(&schema, &json_of(example), &schema));
        let first = example.lines().next().unwrap();
        assert_eq!(
            first,
            "# yaml-language-server: $schema=../docs/mesh.schema.json"
        );
    }
}

/// Without it: a field could be documented and never shown, nor tested by the tests below.
#[test]
fn full_example_holds_every_field() {
    let mut all = BTreeSet::new();
    all_fields(&ROOT, &mut all);
    let shown: BTreeSet<_> = full()
        .1
        .iter()
        .map(|(object, field, ..)| (*object, *field))
        .collect();
    assert_eq!(
        all.difference(&shown).collect::<Vec<_>>(),
        Vec::<&(&str, &str)>::new()
    );
}

/// Without it: a field could be taken and ignored.
#[test]
fn every_field_has_an_effect() {
    let (full, places) = full();
    let whole = examine(&full).config.unwrap();
    let mut effective: BTreeMap<_, bool> = BTreeMap::new();
    for (object, field, at, ..) in places {
        let old = full.pointer(&at).unwrap()[field].clone();
        // `workers` may be what this machine has anyway.
        let other = old.as_i64().filter(|n| *n > 1).map(|n| json!(n - 1));
        let differs = [None, other.clone()]
            .into_iter()
            .take(1 + usize::from(other.is_some()))
            .any(|value| {
                examine(&with(&full, &at, field, value))
                    .config
                    .is_none_or(|config| config != whole)
            });
        *effective.entry((object, field)).or_default() |= differs;
    }
    let ignored: Vec<_> = effective.iter().filter(|(_, effect)| !**effect).collect();
    assert!(ignored.is_empty(), "{ignored:?}");
}

/// Without it: the documented default is not the one that holds.
#[test]
fn every_documented_default_is_the_one_that_holds() {
    let (full, places) = full();
    let mut tried = 0;
    for (object, field, at, _, absent) in places {
        let Absent::Default(text, _) = absent else {
            continue;
        };
        let without = examine(&with(&full, &at, field, None));
        let given = examine(&with(&full, &at, field, Some(default(text))));
        // Without its namespace a service is not found, and a loopback endpoint wants `node`: then
        // both must be refused.
        assert_eq!(without.config, given.config, "{object}.{field} at {at}");
        tried += usize::from(without.config.is_some());
    }
    assert!(tried > 40, "{tried}");
}

/// Without it: two words of a choice could mean the same, or one nothing.
#[test]
fn every_word_of_a_choice_means_something_of_its_own() {
    let (full, places) = full();
    let mut tried = BTreeSet::new();
    for (object, field, at, shape, _) in places {
        let (words, list) = match shape {
            Shape::Choice(words) | Shape::Either(Shape::Choice(words), Shape::Object(_)) => {
                (words, false)
            }
            Shape::List {
                of: Shape::Choice(words),
                ..
            } => (words, true),
            _ => continue,
        };
        let make = |word: &str| if list { json!([word]) } else { json!(word) };
        let configs: Vec<_> = words
            .iter()
            .map(|(word, _)| examine(&with(&full, &at, field, Some(make(word)))))
            .filter_map(|examined| examined.config)
            .collect();
        // A loopback endpoint takes one word only; another service takes both.
        if configs.len() < words.len() {
            continue;
        }
        for (i, config) in configs.iter().enumerate() {
            assert!(
                configs.iter().skip(i + 1).all(|other| other != config),
                "{object}.{field}"
            );
        }
        tried.insert((object, field));
    }
    let choices = [
        "protocol",
        "dial-from",
        "failure",
        "mode",
        "inbound",
        "bypass-guard",
        "second-pass",
        "action",
        "balance",
        "on",
        "format",
        "filter",
    ];
    for field in choices.into_iter().chain(["unknown-netns"]) {
        assert!(
            tried.iter().any(|(_, tried)| *tried == field),
            "{field} is not in {tried:?}"
        );
    }
}

/// Whether the check of form refuses, and whether in a way that the schema can say.
fn form(examined: &Examined) -> (bool, bool) {
    let codes = [
        Code::FileEmpty,
        Code::UnknownField,
        Code::MissingField,
        Code::WrongType,
        Code::BadValue,
        Code::OutOfRange,
        Code::BadCount,
        Code::Conflict,
    ];
    let problems = examined
        .report
        .problems
        .iter()
        .filter(|problem| codes.contains(&problem.code));
    let mut refused = false;
    let mut sayable = false;
    for problem in problems {
        refused = true;
        // The range of a duration or size in text.
        sayable |=
            problem.code != Code::OutOfRange || !problem.message.ends_with("s` is out of range");
    }
    (refused, sayable)
}

/// A file with one value changed in every way.
fn changes(base: &Value, at: &str, replacements: &[Value]) -> Vec<Value> {
    let replaced = |replacement: &Value| {
        let mut changed = base.clone();
        *changed.pointer_mut(at).unwrap() = replacement.clone();
        changed
    };
    let mut changed: Vec<Value> = replacements.iter().map(replaced).collect();
    if let Some(Value::Object(map)) = base.pointer(at) {
        changed.push(with(base, at, "unheard-of", Some(json!(1))));
        changed.extend(map.keys().map(|name| with(base, at, name, None)));
    }
    changed
}

/// Without it: an editor marks what the agent takes, or not what it refuses.
#[test]
fn schema_and_parser_agree_on_every_change_of_a_value() {
    let schema = schema();
    let full = json_of(EXAMPLES[3]);
    let replacements = [
        json!(null),
        json!(true),
        json!(0),
        json!(5),
        json!(-1),
        json!(1_000_000_000_000_i64),
        json!(0.5),
        json!(""),
        json!("x"),
        json!("15s"),
        json!("10.0.0.1"),
        json!("64KiB"),
        json!("a b"),
        json!([]),
        json!(["x"]),
        json!({}),
        json!({"x": "y"}),
        json!([{"weight": 1}, {}]),
    ];
    let mut refused = 0;
    // Each part of the file for itself: form does not ask about the others. Expressions are left
    // out, since compiling them takes most of the time of an unoptimised build.
    for (part, content) in full.as_object().unwrap() {
        let content = content
            .to_string()
            .replace("/v[0-9]+/reviews", "x")
            .replace(".*", "");
        let content: Value = serde_json::from_str(&content).unwrap();
        let base = json!({"apiVersion": "mesh/v1alpha1", "kind": "MeshConfig", part: content});
        let mut all = Vec::new();
        pointers(&base[part], &format!("/{part}"), &mut all);
        for at in all.iter().map(String::as_str).chain([""]) {
            for value in changes(&base, at, &replacements) {
                let examined = examine(&value);
                let (parser, sayable) = form(&examined);
                let by_schema = !valid(&schema, &value, &schema);
                refused += usize::from(by_schema);
                assert!(
                    by_schema == parser || (parser && !sayable),
                    "at {at}: schema refuses: {by_schema}, parser refuses: {parser}\n{}\n{}",
                    value.pointer(at).unwrap_or(&Value::Null),
                    examined.report.render(false)
                );
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
