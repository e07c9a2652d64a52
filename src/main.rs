//! The `bailiwick` program: see `bailiwick --help`.

fn main() {}
