//! `latchkey-agent`, the daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    latchkey_agent::cli::main()
}
