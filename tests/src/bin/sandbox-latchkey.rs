//! The command `latchkey` as it ships; here, so that building the tests builds it.

fn main() -> std::process::ExitCode {
    latchkey_client::cli::main()
}
