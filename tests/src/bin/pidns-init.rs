//! The first process of a PID namespace whose numbers a test chooses.

fn main() -> std::io::Result<std::process::ExitCode> {
    testkit::pid_namespace::run_init()
}
