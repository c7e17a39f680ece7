//! The first process of a PID namespace in which a test chooses the PIDs.

fn main() -> std::io::Result<std::process::ExitCode> {
    testkit::pid_namespace::run_init()
}
