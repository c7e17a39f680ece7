//! Where a value goes: stdout, or a file that exists whole or not at all.

use super::failure::Failure;
use super::terminal;
use clap::builder::{PathBufValueParser, TypedValueParser as _};
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

/// The bits of a mode that let everybody in.
const OTHERS: u32 = 0o007;

/// The bit of a mode that lets the owner read.
const OWNER_READS: u32 = 0o400;

/// Where to write.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Sink {
    /// Write to FILE instead of stdout: whole or not at all, and never readable by everybody
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(out))]
    pub(crate) out: Option<PathBuf>,
    /// File mode, in octal
    #[arg(long, value_name = "MODE", default_value = "600", requires = "out", value_parser = mode)]
    mode: u32,
}

impl Sink {
    /// Writes the bytes as they are.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        match &self.out {
            Some(path) => self.replace(path, bytes),
            None => to_stdout(bytes),
        }
    }

    /// Writes a single value. On a terminal it ends the line, so that the prompt gets a line of its own.
    pub(crate) fn write_value(&self, bytes: &[u8]) -> Result<(), Failure> {
        if self.out.is_some() || !terminal::stdout_is_terminal() || bytes.ends_with(b"\n") {
            return self.write(bytes);
        }
        let mut line = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
        line.extend_from_slice(bytes);
        line.push(b'\n');
        self.write(&line)
    }

    /// Replaces the regular file at `path`, if there is one. Until the new file is whole it has another name, and from
    /// its first byte on nobody else may read it.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), Failure> {
        let failed =
            |error: io::Error| Failure::other(format!("cannot write {}: {error}", path.display()));
        match fs::symlink_metadata(path) {
            Ok(there) if !there.is_file() => {
                return Err(Failure::usage(format!(
                    "{} is there and is no regular file: name another one",
                    path.display()
                )));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(_) | Err(_) => {}
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // The error for a missing directory would name a file that nobody knows.
        if !directory.is_dir() {
            return Err(Failure::other(format!(
                "cannot write {}: there is no directory {}",
                path.display(),
                directory.display()
            )));
        }
        let mut file = begin(directory).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(self.mode))
            .map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// Creates an empty file, which nobody else may read from the start.
fn begin(directory: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".latchkey-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)
}

/// Writes everything to stdout.
pub(crate) fn to_stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::stdout(&error))
}

/// Parses a file's path. Other commands take `-` for stdout; nobody would look for a secret in a file of that name.
fn out(path: PathBuf) -> Result<PathBuf, &'static str> {
    if path.as_os_str() == "-" {
        return Err("leave --out away for stdout, or write ./- for a file of that name");
    }
    Ok(path)
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or("write an octal mode such as 600 or 440")?;
    if mode & OTHERS != 0 {
        return Err("a secret is not for everybody: the last digit must be 0".to_owned());
    }
    if mode & OWNER_READS == 0 {
        return Err("nobody could read the file: write a mode such as 600 or 440".to_owned());
    }
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(path: &Path, mode: u32) -> Sink {
        Sink {
            out: Some(path.to_owned()),
            mode,
        }
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        fs::write(&path, "old and much longer").expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("its mode");
        sink(&path, 0o440).write(b"new").expect("it is written");
        assert_eq!(fs::read(&path).expect("the file"), b"new");
        let mode = fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o7777, 0o440);
        let left = fs::read_dir(directory.path()).expect("the directory");
        assert_eq!(left.count(), 1);
    }

    #[test]
    fn a_file_is_nobody_elses_before_it_holds_anything() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = begin(directory.path()).expect("a file");
        let mode = file.as_file().metadata().expect("it").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn nothing_but_a_regular_file_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/dev/stdout", &link).expect("a link");
        for path in [link, directory.path().to_owned(), "/dev/null".into()] {
            let failure = sink(&path, 0o600).write(b"x").expect_err("it is refused");
            assert!(failure.text().contains("no regular file"), "{failure:?}");
        }
        let missing = directory.path().join("no/such/directory");
        let failure = sink(&missing, 0o600).write(b"x").expect_err("it fails");
        assert!(failure.text().starts_with("cannot write"), "{failure:?}");
    }

    #[test]
    fn a_mode_lets_not_everybody_in() {
        assert_eq!(mode("600"), Ok(0o600));
        assert_eq!(mode("0440"), Ok(0o440));
        for wrong in ["644", "777", "1600", "rw", ""] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mode_lets_the_owner_read() {
        assert_eq!(mode("400"), Ok(0o400));
        for wrong in ["0", "000", "060", "200"] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dash_is_no_file() {
        assert!(out("-".into()).is_err());
        for path in ["./-", "-a", "a-"] {
            assert_eq!(out(path.into()), Ok(path.into()));
        }
    }
}
