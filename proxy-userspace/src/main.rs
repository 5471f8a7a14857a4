//! The binary `portway`: parses the command line and hands over.

mod contents;
mod place;

fn main() {}
