//! `latchkey install`: this command, copied to where another image can run it.

use super::failure::Failure;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// This program's own file, whatever it is called and wherever it was started from (proc(5)).
const SELF: &str = "/proc/self/exe";

/// Copy this program into a directory, for init containers
///
/// An image with nothing but `latchkey` in it has no cp. The copy is there whole or not at all, and everybody may run
/// it.
#[derive(Debug, clap::Args)]
pub(crate) struct Install {
    /// Directory, which must exist
    directory: PathBuf,
}

impl Install {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let to = self.directory.join("latchkey");
        self.copy(&to)
            .map_err(|error| Failure::other(format!("cannot write {}: {error}", to.display())))?;
        Ok(ExitCode::SUCCESS)
    }

    fn copy(&self, to: &std::path::Path) -> io::Result<()> {
        // Into the same directory, then renamed: a copy that is running stays as it is.
        let mut file = tempfile::Builder::new()
            .prefix(".latchkey-")
            .tempfile_in(&self.directory)?;
        io::copy(&mut File::open(SELF)?, file.as_file_mut())?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o755))?;
        file.as_file().sync_all()?;
        if fs::symlink_metadata(to).is_ok_and(|there| there.is_dir()) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        file.persist(to)?;
        Ok(())
    }
}
