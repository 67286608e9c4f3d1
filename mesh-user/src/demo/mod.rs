//! What the demo, the tests and the bench are made of: echo servers and a load generator, built
//! into the binary so that no image and no other tool is needed.

pub mod echo;
pub mod load;
