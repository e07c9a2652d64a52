//! The `bailiwick` program: see `bailiwick --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bailiwick::cli::main()
}
