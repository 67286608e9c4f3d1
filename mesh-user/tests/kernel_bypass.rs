//! Every way past the mesh that we know of, tried from inside a pod by root with all capabilities,
//! with `bypass-guard` off and on. What counts is what the destination's interface received.
//!
//! The table in docs/BYPASS.md is this one: `documented_table_is_the_tested_one` compares them.
//! Needs root and BPF; fails, never skips, without.

#[path = "bypass/attempts.rs"]
mod attempts;
#[path = "bypass/field.rs"]
mod field;
#[path = "bypass/ports.rs"]
mod ports;
mod support;

use std::collections::BTreeMap;

use attempts::{ATTEMPTS, Attempt};
use field::Field;

/// Runs the whole table; what came out otherwise than it says.
fn differences(field: &Field, expected: impl Fn(&Attempt) -> &'static str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, attempt) in ATTEMPTS.iter().enumerate() {
        let (seen, said) = field.attempt(number, attempt.script);
        println!("{}: {seen}", attempt.name);
        if seen != expected(attempt) {
            let expected = expected(attempt);
            wrong.push(format!(
                "{}: expected {expected:?}, seen {seen:?} ({said})",
                attempt.name
            ));
        }
        field.restore(attempt.undo);
    }
    wrong
}

/// Without it: `bypass-guard: on` is a promise. INTERCEPTION 2.12; pitfalls 28, 34 and 35.
#[test]
fn no_attempt_of_a_guarded_pod_gets_past_the_mesh() {
    let field = Field::new("bpon", true);
    let wrong = differences(&field, |attempt| attempt.on);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without it: nobody knows what the guard is for, and a test that passes proves nothing.
#[test]
fn the_same_attempts_of_a_pod_without_the_guard_do_what_the_table_says() {
    let field = Field::new("bpoff", false);
    let wrong = differences(&field, |attempt| attempt.off);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without it: the documentation promises what nobody tried.
#[test]
fn documented_table_is_the_tested_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/BYPASS.md");
    let text = std::fs::read_to_string(path).expect("docs/BYPASS.md");
    let documented: BTreeMap<&str, (&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
            match cells.as_slice() {
                [name, off, on, ..] if !name.is_empty() && !name.starts_with("---") => {
                    Some((*name, (*off, *on)))
                }
                _ => None,
            }
        })
        .filter(|(name, _)| *name != "attempt")
        .collect();
    let tested: BTreeMap<&str, (&str, &str)> = ATTEMPTS
        .iter()
        .map(|attempt| (attempt.name, (attempt.off, attempt.on)))
        .collect();
    assert!(tested.len() >= 25 && tested.len() == ATTEMPTS.len());
    assert_eq!(documented, tested);
}
