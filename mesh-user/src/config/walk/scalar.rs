//! Scalars, and values of the wrong type.

use crate::config::{
    collect::Collector,
    locate::head,
    path::Trail,
    report::Code,
    shape::Shape,
    suggest,
    text::{self, Text},
    tree::{Node, Value},
    units,
};

/// Checks a value that is neither a list nor a mapping.
pub(super) fn walk_scalar(
    node: &Node,
    shape: &'static Shape,
    trail: Trail<'_>,
    out: &mut Collector,
) {
    match (shape, &node.value) {
        (Shape::Text(kind), Value::Text(value)) => {
            if let Err(fault) = kind.check(value) {
                let expected = fault.expected.or_else(|| Some(kind.describe()));
                out.error(fault.code, node.span, trail.path(), fault.message, expected);
            }
        }
        (Shape::Bool, Value::Bool(_)) => {}
        (Shape::Int { min, max } | Shape::Size { min, max }, Value::Int(value)) => {
            if !(i128::from(*min)..=i128::from(*max)).contains(value) {
                out_of_range(node, &value.to_string(), shape, trail, out);
            }
        }
        (Shape::Size { min, max }, Value::Text(value)) => match units::size(value) {
            Some(size) if (*min..=*max).contains(&size) => {}
            Some(_) => out_of_range(node, value, shape, trail, out),
            None => wrong_type(node, shape, trail, out),
        },
        (Shape::Choice(words), Value::Text(value)) => {
            if !words.iter().any(|(word, _)| *word == &**value) {
                unknown_word(node, value, words, shape, trail, out);
            }
        }
        _ => wrong_type(node, shape, trail, out),
    }
}

fn unknown_word(
    node: &Node,
    value: &str,
    words: &[(&'static str, &str)],
    shape: &'static Shape,
    trail: Trail<'_>,
    out: &mut Collector,
) {
    let near = suggest::nearest(value, words.iter().map(|(word, _)| *word));
    let all = shape.describe();
    let expected = match (near, words) {
        (_, [(only, _)]) => format!("`{only}`"),
        (Some(near), _) => format!("`{near}`; known here: {all}"),
        (None, _) => format!("one of {all}"),
    };
    let message = format!("`{}` is not known here", text::shown(value));
    out.error(
        Code::BadValue,
        node.span,
        trail.path(),
        message,
        Some(expected),
    );
}

fn out_of_range(node: &Node, value: &str, shape: &Shape, trail: Trail<'_>, out: &mut Collector) {
    let message = format!("`{}` is out of range", text::shown(value));
    out.error(
        Code::OutOfRange,
        node.span,
        trail.path(),
        message,
        Some(shape.describe()),
    );
}

/// Reports a value of another type, with a guess at what was meant.
pub(super) fn wrong_type(node: &Node, shape: &Shape, trail: Trail<'_>, out: &mut Collector) {
    let expected = match (shape, &node.value) {
        // The usual slip: a tag or name that looks like a number.
        (Shape::Text(Text::Duration(..)), Value::Int(number)) => {
            format!("a unit after the number: {number}s or {number}ms")
        }
        (Shape::Text(Text::Rate), Value::Int(number)) => {
            format!("a time after the number: {number}/s")
        }
        (
            Shape::Text(_) | Shape::Either(Shape::Text(_), Shape::Object(_)),
            Value::Int(_) | Value::Float | Value::Bool(_),
        ) => format!("{}; put it in quotes to make it text", shape.describe()),
        (Shape::Bool, Value::Text(word)) if matches!(&**word, "yes" | "on") => "true".to_owned(),
        (Shape::Bool, Value::Text(word)) if matches!(&**word, "no" | "off") => "false".to_owned(),
        (Shape::Choice(_), _) => format!("one of {}", shape.describe()),
        _ => shape.describe(),
    };
    report_type(node, expected, trail, out);
}

/// Reports a value of another type.
pub(super) fn report_type(node: &Node, expected: String, trail: Trail<'_>, out: &mut Collector) {
    let message = match &node.value {
        Value::Null => "there is no value".to_owned(),
        Value::Bool(value) => format!("`{value}` is of the wrong type"),
        Value::Int(value) => format!("`{value}` is of the wrong type"),
        Value::Float => "a number with a fraction or exponent is of the wrong type".to_owned(),
        Value::Text(value) => format!("`{}` is of the wrong type", text::shown(value)),
        Value::List(_) => "a list is of the wrong type".to_owned(),
        Value::Map(_) => "a mapping is of the wrong type".to_owned(),
    };
    let expected = if matches!(node.value, Value::Null) {
        format!("{expected}; or leave the field out")
    } else {
        expected
    };
    out.error(
        Code::WrongType,
        head(node),
        trail.path(),
        message,
        Some(expected),
    );
}
