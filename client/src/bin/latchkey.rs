//! The command `latchkey`; all of it is in [`latchkey_client::cli`].

fn main() -> std::process::ExitCode {
    latchkey_client::cli::main()
}
