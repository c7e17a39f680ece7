//! A workload's process: enters the place it is given, and does what a test says.

fn main() -> std::io::Result<std::process::ExitCode> {
    testkit::workload::run_pod()
}
