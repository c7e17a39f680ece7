//! `latchkey-agent` as the sandbox runs it: the same library and entry point as the shipped program, built with the
//! tests so that they never run an older one.

use std::process::ExitCode;

fn main() -> ExitCode {
    latchkey_agent::cli::main()
}
