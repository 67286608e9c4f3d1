//! Reads Rust sources just far enough for the import check: code without comments and strings, and
//! the paths in it.

/// The code with comments, strings and test modules blanked out, line by line as before.
pub(super) fn code(source: &str) -> String {
    without_tests(&without_comments_and_strings(source))
}

/// Cuts at `#[cfg(test)]` before a module with a body: test modules stand last in a file.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().map_or("", |next| next.trim());
        if line.trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{') {
            break;
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

fn without_comments_and_strings(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| string(rest));
        if let Some(length) = skipped {
            kept.extend(rest[..length].chars().filter(|c| *c == '\n'));
            kept.push(' ');
            rest = &rest[length..];
        } else {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    kept
}

/// Length of the comment that starts here.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    rest.starts_with("/*")
        .then(|| rest.find("*/").map_or(rest.len(), |end| end + 2))
}

/// Length of the string or character literal that starts here.
fn string(rest: &str) -> Option<usize> {
    if let Some(after) = rest.strip_prefix('r') {
        let hashes = after.len() - after.trim_start_matches('#').len();
        if after[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = 1 + hashes + 1;
            return Some(
                rest[body..]
                    .find(&end)
                    .map_or(rest.len(), |at| body + at + end.len()),
            );
        }
    }
    // The only character literals that could open a string by mistake.
    if rest.starts_with("'\"'") {
        return Some(3);
    }
    if rest.starts_with("'\\\"'") {
        return Some(4);
    }
    let body = rest.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => return Some(at + 2),
            _ => escaped = false,
        }
    }
    Some(rest.len())
}

/// Every path below `root` (such as `crate`), with its line: `crate::{a, b::{c, d}}` gives `a`,
/// `b::c`, `b::d`.
pub(super) fn paths(code: &str, root: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let prefix = format!("{root}::");
    for (at, _) in code.match_indices(&prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let mut names = Vec::new();
        tree(&code[at + prefix.len()..], "", &mut names);
        found.extend(names.into_iter().map(|name| (line, name)));
    }
    found
}

/// Reads one path or group; returns what stands behind it.
fn tree<'a>(text: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(behind) = rest.strip_prefix('}') {
                return behind;
            }
            let next = tree(rest, prefix, found);
            if next.len() == rest.len() {
                return next;
            }
            rest = next.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
    }
    let length = text
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    if length == 0 {
        // A glob: all of the prefix.
        if !prefix.is_empty() {
            found.push(prefix.to_owned());
        }
        return text.strip_prefix('*').unwrap_or(text);
    }
    let path = if prefix.is_empty() {
        text[..length].to_owned()
    } else {
        format!("{prefix}::{}", &text[..length])
    };
    match text[length..].strip_prefix("::") {
        Some(below) => tree(below, &path, found),
        None => {
            found.push(path);
            let behind = text[length..].trim_start();
            behind.strip_prefix("as ").map_or(behind, |alias| {
                let alias = alias.trim_start();
                alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_')
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(code: &str) -> Vec<String> {
        paths(code, "crate")
            .into_iter()
            .map(|(_, name)| name)
            .collect()
    }

    #[test]
    fn paths_of_groups_are_unfolded() {
        let code = "use crate::{a, b::{c, d as e, f::*}, self_::g};\nlet x = crate::h::i();";
        assert_eq!(
            names(code),
            ["a", "b::c", "b::d", "b::f", "self_::g", "h::i"]
        );
        assert_eq!(paths(code, "crate").last(), Some(&(2, "h::i".to_owned())));
    }

    #[test]
    fn paths_that_only_end_in_the_root_are_not_taken() {
        assert!(names("use my_crate::a; use x::crate::b;").is_empty());
    }

    #[test]
    fn unfinished_groups_end() {
        for code in [
            "crate::",
            "crate::{",
            "crate::{a",
            "crate::{a::{b",
            "crate::{;",
            "crate::a as",
        ] {
            names(code);
        }
    }

    #[test]
    fn comments_strings_and_tests_are_no_code() {
        let source = r##"
            // crate::a
            /* crate::b */
            let s = "crate::c \" crate::d";
            let r = r#"crate::e " "#;
            let q = '"'; use crate::f;
            #[cfg(test)]
            use crate::g;
            #[cfg(test)]
            mod tests {
                use crate::h;
            }
        "##;
        assert_eq!(names(&code(source)), ["f", "g"]);
    }

    #[test]
    fn lines_stay_where_they_were() {
        let code = code("/* a\nb */ \"c\nd\"\nuse crate::x;");
        assert_eq!(paths(&code, "crate"), [(4, "x".to_owned())]);
    }
}
