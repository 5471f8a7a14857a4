//! The binary `portway`: parses the command line and hands over.

mod contents;

fn main() {}
