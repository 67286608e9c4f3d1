//! A TLS ClientHello, read and never touched (RFC 8446, section 4.1.2). Pure.
//!
//! It may come in any segments, in any number of records, and is bounded in bytes. What is of use
//! for a decision is taken out; everything else is only skipped, by its length.

use std::{borrow::Cow, net::IpAddr, ops::Range};

/// Largest ClientHello, without its four bytes of type and length: what a client with several
/// post-quantum key shares sends is some 10 KiB.
pub(in crate::proxy) const HELLO_BYTES_MAX: usize = 64 << 10;
/// Largest ClientHello as it comes, records included. Small records cost five bytes each.
pub(in crate::proxy) const WIRE_BYTES_MAX: usize = 128 << 10;

/// Content type of a record that carries handshake messages.
const RECORD_HANDSHAKE: u8 = 22;
/// Bytes of type, version and length before each record.
const RECORD_HEADER: usize = 5;
/// RFC 8446, section 5.1.
const RECORD_BYTES_MAX: usize = 1 << 14;
const MESSAGE_CLIENT_HELLO: u8 = 1;
/// Bytes of type and length before a handshake message.
const MESSAGE_HEADER: usize = 4;

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
/// DNS: 255 bytes with lengths and root.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// What a client says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct ClientHello {
    /// The host name that it means, lower-case, without trailing dot. None: it names none, or an
    /// address, which is no name (RFC 6066, section 3).
    pub(in crate::proxy) server_name: Option<Box<str>>,
    /// What it would speak, in its order.
    pub(in crate::proxy) alpn: Vec<Box<[u8]>>,
    /// Versions that it offers by the extension, in its order; empty: TLS 1.2 or older.
    pub(in crate::proxy) versions: Vec<u16>,
}

/// Why bytes are no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum NoHello {
    /// They don't begin like one.
    NotTls,
    /// They do, and then break the rules, or a bound.
    Malformed,
}

/// Looks for the end of a ClientHello at the front of a buffer that grows: each byte is looked at
/// once, however it comes.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Scan {
    /// Where the next record begins.
    record: usize,
    /// The fragments so far, by their place in the buffer.
    fragments: Vec<Range<usize>>,
    /// Their bytes.
    have: usize,
    /// The first bytes of the message: its type and length.
    head: [u8; MESSAGE_HEADER],
}

impl Scan {
    /// Takes note of what came. `Some`: the ClientHello is complete.
    ///
    /// # Errors
    /// See [`NoHello`].
    pub(in crate::proxy) fn advance(
        &mut self,
        bytes: &[u8],
    ) -> Result<Option<ClientHello>, NoHello> {
        loop {
            let broken = if self.have == 0 {
                NoHello::NotTls
            } else {
                NoHello::Malformed
            };
            let rest = bytes.get(self.record..).unwrap_or_default();
            if let Some(kind) = rest.first()
                && *kind != RECORD_HANDSHAKE
            {
                return Err(broken);
            }
            // The minor version is 1 to 4, or what the future brings; it means nothing.
            if rest.get(1).is_some_and(|major| *major != 3) {
                return Err(broken);
            }
            if self.record == 0 && rest.get(RECORD_HEADER).is_some_and(|kind| *kind != 1) {
                return Err(NoHello::NotTls);
            }
            let Some(header) = rest.first_chunk::<RECORD_HEADER>() else {
                return self.more(bytes);
            };
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if length == 0 || length > RECORD_BYTES_MAX {
                return Err(NoHello::Malformed);
            }
            let Some(fragment) = rest.get(RECORD_HEADER..RECORD_HEADER + length) else {
                return self.more(bytes);
            };
            for (place, byte) in self.head.iter_mut().skip(self.have).zip(fragment) {
                *place = *byte;
            }
            let begin = self.record + RECORD_HEADER;
            self.have += length;
            self.fragments.push(begin..begin + length);
            self.record = begin + length;
            if self.have >= MESSAGE_HEADER {
                let [kind, high, middle, low] = self.head;
                if kind != MESSAGE_CLIENT_HELLO {
                    return Err(NoHello::Malformed);
                }
                let length = u32::from_be_bytes([0, high, middle, low]) as usize;
                if length > HELLO_BYTES_MAX {
                    return Err(NoHello::Malformed);
                }
                if self.have >= MESSAGE_HEADER + length {
                    let message = self.message(bytes);
                    let body = &message[MESSAGE_HEADER..MESSAGE_HEADER + length];
                    return parse(body).map(Some).ok_or(NoHello::Malformed);
                }
            }
        }
    }

    /// Incomplete: that is all right as long as it may still become whole.
    fn more(&self, bytes: &[u8]) -> Result<Option<ClientHello>, NoHello> {
        if bytes.len() >= WIRE_BYTES_MAX {
            return Err(NoHello::Malformed);
        }
        Ok(None)
    }

    fn message<'b>(&self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        match self.fragments.as_slice() {
            [only] => Cow::Borrowed(&bytes[only.clone()]),
            several => Cow::Owned(
                several
                    .iter()
                    .flat_map(|fragment| &bytes[fragment.clone()])
                    .copied()
                    .collect(),
            ),
        }
    }
}

/// Takes vectors off the front of a message; none when it is too short.
struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn word(&mut self) -> Option<u16> {
        self.take(2)
            .map(|word| u16::from_be_bytes([word[0], word[1]]))
    }

    /// A vector with a length of one byte.
    fn short(&mut self) -> Option<Self> {
        let length = self.byte()?;
        self.take(length.into()).map(Self)
    }

    /// A vector with a length of two bytes.
    fn long(&mut self) -> Option<Self> {
        let length = self.word()?;
        self.take(length.into()).map(Self)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The body of a ClientHello. None: malformed.
fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut hello = ClientHello::default();
    let mut body = Bytes(body);
    body.word()?; // legacy_version
    body.take(32)?; // random
    if body.short()?.0.len() > 32 {
        return None; // legacy_session_id
    }
    let ciphers = body.long()?.0.len();
    if ciphers < 2 || ciphers % 2 != 0 || body.short()?.is_empty() {
        return None;
    }
    // Without extensions it ends here (RFC 5246, section 7.4.1.2).
    if body.is_empty() {
        return Some(hello);
    }
    let mut extensions = body.long()?;
    if !body.is_empty() {
        return None;
    }
    let mut seen = [false; 3];
    while !extensions.is_empty() {
        let kind = extensions.word()?;
        let content = extensions.long()?;
        let slot = match kind {
            EXTENSION_SERVER_NAME => 0,
            EXTENSION_ALPN => 1,
            EXTENSION_SUPPORTED_VERSIONS => 2,
            _ => continue,
        };
        // RFC 8446, section 4.2: not twice. Servers differ in which one they take.
        if std::mem::replace(&mut seen[slot], true) {
            return None;
        }
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = server_name(content)?,
            EXTENSION_ALPN => hello.alpn = alpn(content)?,
            _ => hello.versions = versions(content)?,
        }
    }
    Some(hello)
}

/// RFC 6066, section 3. The outer none: malformed.
fn server_name(mut content: Bytes<'_>) -> Option<Option<Box<str>>> {
    let mut list = content.long()?;
    if list.is_empty() || !content.is_empty() {
        return None;
    }
    let mut name = None;
    while !list.is_empty() {
        let kind = list.byte()?;
        let value = list.long()?.0;
        // Not two of a kind; no kind but host_name (0) was ever made.
        if kind == 0 && name.replace(value).is_some() {
            return None;
        }
    }
    let Some(name) = name else {
        return Some(None);
    };
    let name = str::from_utf8(name).ok()?;
    if name.parse::<IpAddr>().is_ok() {
        return Some(None);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    is_host_name(name).then(|| Some(name.to_ascii_lowercase().into_boxed_str()))
}

/// Labels of letters, digits, `-` and `_` (which is not allowed, and common).
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)
}

/// RFC 7301, section 3.1.
fn alpn(mut content: Bytes<'_>) -> Option<Vec<Box<[u8]>>> {
    let mut list = content.long()?;
    if list.is_empty() || !content.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let name = list.short()?;
        if name.is_empty() {
            return None;
        }
        protocols.push(name.0.into());
    }
    Some(protocols)
}

/// RFC 8446, section 4.2.1.
fn versions(mut content: Bytes<'_>) -> Option<Vec<u16>> {
    let mut list = content.short()?;
    if list.is_empty() || !content.is_empty() {
        return None;
    }
    let mut versions = Vec::new();
    while !list.is_empty() {
        versions.push(list.word()?);
    }
    Some(versions)
}

#[cfg(test)]
mod tests;
