//! A workload's process: goes where it is told and does what a test says.

fn main() -> std::io::Result<std::process::ExitCode> {
    testkit::workload::run_pod()
}
