//! What the programs decide: pure functions over plain values, tested on the host.
//!
//! The programs themselves (`main.rs` and below, built for the BPF target only) are glue: they
//! read a context, ask [`decide`], and carry the verdict out. Whatever a decision must look up it
//! asks for through a small trait, so that the *order* of the look-ups is a part of what is
//! tested, and nothing is looked up that the decision does not need.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod decide;
