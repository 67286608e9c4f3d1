//! Text from requests, made harmless for one line of one format.
//!
//! A client chooses paths, names and agents: none of them may end a line, close a quote, or move
//! a terminal's cursor.

/// Most bytes of one field. Longer ones end in `...`: a log line is not the place for 64 KiB.
pub(super) const FIELD_BYTES_MAX: usize = 4_096;

/// How a character that may not stand as it is gets written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `\"`, `\\`, `\xHH` and `\u{HHHH}`: Envoy's line and logfmt.
    Backslash,
    /// As RFC 8259 §7 asks.
    Json,
}

/// Appends `text` between quotes.
pub(super) fn quoted(style: Style, text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    bare(style, text, out);
    out.push(b'"');
}

/// Appends `text` without quotes around it.
pub(super) fn bare(style: Style, text: &[u8], out: &mut Vec<u8>) {
    let (kept, cut) = match text.get(..FIELD_BYTES_MAX) {
        Some(kept) if kept.len() < text.len() => (whole_chars(kept), true),
        _ => (text, false),
    };
    // Nearly every field is plain: one pass to see it, one copy.
    if kept.iter().copied().all(plain) {
        out.extend_from_slice(kept);
    } else {
        for chunk in kept.utf8_chunks() {
            chunk.valid().chars().for_each(|char| one(style, char, out));
            chunk
                .invalid()
                .iter()
                .for_each(|byte| not_utf8(style, *byte, out));
        }
    }
    if cut {
        out.extend_from_slice(b"...");
    }
}

fn plain(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\'
}

/// Leaves out a character that was cut through at the end.
fn whole_chars(text: &[u8]) -> &[u8] {
    let continued = text
        .iter()
        .rev()
        .take(3)
        .take_while(|byte| **byte & 0xc0 == 0x80)
        .count();
    match text.get(text.len() - continued - 1) {
        Some(first) if *first >= 0xc0 => &text[..text.len() - continued - 1],
        _ => text,
    }
}

/// JSON has no way to write a byte, so there it becomes the replacement character.
fn not_utf8(style: Style, byte: u8, out: &mut Vec<u8>) {
    match style {
        Style::Backslash => hex(style, char::from(byte), out),
        Style::Json => out.extend_from_slice(b"\\ufffd"),
    }
}

fn one(style: Style, char: char, out: &mut Vec<u8>) {
    let mut utf8 = [0; 4];
    match char {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        // Line ends for some readers; and what turns the direction of text round.
        '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            hex(style, char, out);
        }
        control if control.is_control() => hex(style, control, out),
        other => out.extend_from_slice(other.encode_utf8(&mut utf8).as_bytes()),
    }
}

fn hex(style: Style, char: char, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let code = u32::from(char);
    // Writing to a Vec can't fail. All characters that come here are below U+10000.
    let _ = match style {
        Style::Json => write!(out, "\\u{code:04x}"),
        Style::Backslash if code < 0x100 => write!(out, "\\x{code:02x}"),
        Style::Backslash => write!(out, "\\u{{{code:x}}}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(style: Style, text: &[u8]) -> String {
        let mut out = Vec::new();
        quoted(style, text, &mut out);
        String::from_utf8(out).expect("a line is always UTF-8")
    }

    #[test]
    fn line_ends_and_quotes_stay_inside_their_field() {
        let evil = b"a\r\n[2026] \"GET / HTTP/1.1\" 200\\";
        assert_eq!(
            shown(Style::Backslash, evil),
            r#""a\x0d\x0a[2026] \"GET / HTTP/1.1\" 200\\""#
        );
        assert_eq!(
            shown(Style::Json, evil),
            r#""a\u000d\u000a[2026] \"GET / HTTP/1.1\" 200\\""#
        );
    }

    #[test]
    fn json_of_every_byte_is_one_valid_string() {
        for first in 0..=255_u8 {
            for second in [b'"', b'\\', b'\n', 0x80, 0xc3, 0xff, b'x'] {
                let shown = shown(Style::Json, &[first, second]);
                let parsed: Result<String, _> = serde_json::from_str(&shown);
                assert!(parsed.is_ok(), "{first:#x} {second:#x}: {shown}");
                assert!(!shown.bytes().any(|byte| byte < 0x20), "{shown:?}");
            }
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_not_dropped() {
        assert_eq!(shown(Style::Backslash, b"/a\xff/b"), r#""/a\xff/b""#);
        assert_eq!(shown(Style::Json, b"/a\xff/b"), r#""/a\ufffd/b""#);
        assert_eq!(
            shown(Style::Backslash, "/\u{fc}ber".as_bytes()),
            "\"/\u{fc}ber\""
        );
    }

    #[test]
    fn terminals_and_line_readers_see_no_control() {
        let evil = "\u{1b}[2J\u{7f}\u{85}\u{2028}\u{202e}\u{2066}";
        assert_eq!(
            shown(Style::Backslash, evil.as_bytes()),
            r#""\x1b[2J\x7f\x85\u{2028}\u{202e}\u{2066}""#
        );
    }

    #[test]
    fn field_is_cut_at_its_limit_and_never_inside_a_character() {
        let inside = |text: &str| shown(Style::Json, text.as_bytes()).len() - 2;
        let at = "a".repeat(FIELD_BYTES_MAX);
        assert_eq!(inside(&at), FIELD_BYTES_MAX);
        assert_eq!(inside(&format!("{at}a")), FIELD_BYTES_MAX + 3);
        for wide in ["\u{e4}", "\u{20ac}", "\u{1f600}"] {
            for before in 0..4 {
                let text = "a".repeat(FIELD_BYTES_MAX - before) + &wide.repeat(3);
                let shown = shown(Style::Json, text.as_bytes());
                assert!(!shown.contains("ufffd"), "{wide} {before}: {shown}");
            }
        }
    }
}
