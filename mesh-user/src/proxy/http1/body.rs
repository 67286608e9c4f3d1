//! A body that passes through: which of the bytes at hand belong to it.

use super::chunked::{Chunked, Malformed, Step};

/// The rest of a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// Everything up to the end of the connection.
    UntilClose,
}

impl Body {
    /// No body.
    pub(super) const NONE: Self = Self::Length(0);

    /// Whether every byte has passed.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_done(),
            Self::UntilClose => false,
        }
    }

    /// Takes in the front of `input`.
    ///
    /// # Errors
    /// The framing is broken: nothing after this can be trusted.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        match self {
            Self::Length(left) => {
                let forward = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(input.len());
                *left -= forward as u64;
                Ok(Step { skip: 0, forward })
            }
            Self::Chunked(chunked) => chunked.step(input),
            Self::UntilClose => Ok(Step {
                skip: 0,
                forward: input.len(),
            }),
        }
    }
}
