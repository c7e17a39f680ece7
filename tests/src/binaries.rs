//! Where the sandbox's own programs are.

use std::path::{Path, PathBuf};
use std::{env, io};

/// Finds the program `name` of this build near the running one: a test is in `deps`, below the other programs.
///
/// # Errors
///
/// If it has not been built; the text says how to build it.
pub fn sibling_binary(name: &str) -> io::Result<PathBuf> {
    let running = env::current_exe()?;
    let places = running.ancestors().skip(1).take(2);
    let found = places
        .map(|place| place.join(name))
        .find(|path| is_program(path));
    found.ok_or_else(|| {
        let package = match name {
            "latchkey" => "latchkey-client",
            "latchkey-agent" => "latchkey-agent",
            _ => "testkit",
        };
        let text = format!(
            "{name} is not beside {}: run `cargo build -p {package} --bins`",
            running.display()
        );
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
