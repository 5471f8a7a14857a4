//! The binary `portway`: parses the command line and hands over.

fn main() {}
