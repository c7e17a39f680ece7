//! `latchkey exec`: runs a program with secrets in its environment, in place of this process.

use super::failure::{Failure, OTHER, USAGE};
use super::variables::{Secrets, Wanted};
use super::{Reach, block_on, duration, serve, supervisor};
use clap::builder::NonEmptyStringValueParser;
use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{AccessFlags, Pid, access};
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// The value of a variable in a manifest that says: replace me.
const SENTINEL: &str = "from-latchkey";

/// The exit code of shells for a program that does not exist.
const NO_SUCH_PROGRAM: u8 = 127;

/// The exit code of shells for a program that cannot be run.
const NOT_EXECUTABLE: u8 = 126;

/// Run a program with secrets in its environment
///
/// Reads all secrets first, then becomes the program (execve): process ID, signals and exit code are the program's own.
/// Ends with 127 if there is no such program, and with 126 if it cannot be run.
#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    /// Secrets, each with its variable [default: the name in capitals, with _ for other characters]
    #[arg(value_name = "NAME[=VAR]", required = true)]
    pub(super) names: Vec<Wanted>,
    /// Backend to read them from instead of the agent's default
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(super) backend: Option<String>,
    /// Refuse to start if a variable in the environment holds the sentinel and no secret is given for it
    #[arg(long)]
    strict: bool,
    /// Sentinel for --strict
    #[arg(long, value_name = "VALUE", default_value = SENTINEL, requires = "strict")]
    sentinel: String,
    /// Start with an empty environment
    #[arg(long)]
    pristine: bool,
    /// Stay as a supervisor and restart the program when one of its secrets changes
    #[arg(long)]
    on_change: bool,
    /// Send the program this signal, such as HUP, instead of restarting it
    #[arg(long, value_name = "SIGNAL", requires = "on_change", value_parser = signal)]
    pub(super) signal: Option<Signal>,
    /// How long the program may take to end before it is killed
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "on_change", value_parser = duration)]
    pub(super) grace: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Exec {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let is_none = |wanted: &&Wanted| !wanted.is_for_programs();
        if let Some(wanted) = self.names.iter().find(is_none) {
            return Err(wanted.refused("letters, digits, _, - and ., no digit first"));
        }
        if self.strict {
            self.check_sentinels()?;
        }
        // A missing program is reported before anything is read.
        self.program()?;
        let client = reach.client()?;
        if self.on_change {
            return serve(supervisor::run(&self, &client));
        }
        let secrets = block_on(Secrets::read(&client, self.backend.as_deref(), &self.names))?;
        let mut command = self.command(&secrets)?;
        // It returns only if it fails.
        Err(self.not_started(&command.exec()))
    }

    /// The program with its secrets and all of its environment, ready to run.
    #[expect(
        clippy::disallowed_methods,
        reason = "the environment is what the program gets as well"
    )]
    pub(crate) fn command(&self, secrets: &Secrets) -> Result<Command, Failure> {
        let mut command = Command::new(self.program()?);
        command.arg0(&self.command[0]).args(&self.command[1..]);
        command.env_clear();
        if !self.pristine {
            command.envs(std::env::vars_os());
        }
        for variable in secrets.variables(&self.names) {
            command.env(
                variable.name,
                OsStr::from_bytes(variable.expose_to_program()?),
            );
        }
        Ok(command)
    }

    /// Starts the program as a child of this process.
    pub(crate) fn start(&self, command: &Command) -> Result<Pid, Failure> {
        self.spawn(command)
            .map_err(|error| self.not_started(&error))
    }

    /// With nix: from std it would inherit that the supervisor's signals are blocked.
    fn spawn(&self, command: &Command) -> io::Result<Pid> {
        let path = CString::new(command.get_program().as_bytes())?;
        let arguments = self
            .command
            .iter()
            .map(|text| CString::new(text.as_bytes()));
        let arguments: Vec<_> = arguments.collect::<Result<_, _>>()?;
        let variables = command.get_envs();
        let variables = variables.filter_map(|(name, value)| Some([name, value?]));
        let variables = variables.map(|pair| CString::new(pair.map(OsStr::as_bytes).join(&b'=')));
        let variables: Vec<_> = variables.collect::<Result<_, _>>()?;
        let files = PosixSpawnFileActions::init()?;
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        attributes.set_sigmask(&SigSet::empty())?;
        // As std does: Rust's runtime has it ignored.
        attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
        let started = posix_spawn(&*path, &files, &attributes, &arguments, &variables);
        Ok(started?)
    }

    /// Finds the program, in this process's own PATH, which a pristine environment does not have.
    #[expect(
        clippy::disallowed_methods,
        reason = "the program is looked for where whoever wrote the command line would find it"
    )]
    fn program(&self) -> Result<PathBuf, Failure> {
        let name = &self.command[0];
        if name.as_bytes().contains(&b'/') {
            let place = PathBuf::from(name);
            return match check(&place) {
                Ok(()) => Ok(place),
                Err(error) => Err(self.not_started(&error)),
            };
        }
        let path =
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let mut why = io::Error::from(Errno::ENOENT);
        // Relative parts start from here. The path always has a slash: without one, it would be searched for again.
        let here = Path::new(".");
        for place in std::env::split_paths(&path).map(|part| here.join(part).join(name)) {
            match check(&place) {
                Ok(()) => return Ok(place),
                // A file that may not be run says more than those that do not exist.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => why = error,
                Err(_) => {}
            }
        }
        Err(self.not_started(&why))
    }

    /// Refuses variables that somebody meant to be replaced, but nothing replaces.
    #[expect(
        clippy::disallowed_methods,
        reason = "the environment is what is to be checked"
    )]
    fn check_sentinels(&self) -> Result<(), Failure> {
        let is_named = |variable: &OsStr| {
            self.names
                .iter()
                .any(|wanted| wanted.variable.as_bytes() == variable.as_bytes())
        };
        let mut left: Vec<String> = std::env::vars_os()
            .filter(|(variable, value)| *value == *self.sentinel && !is_named(variable))
            .map(|(variable, _)| String::from_utf8_lossy(&variable.into_vec()).into_owned())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        left.sort();
        Err(Failure::new(
            USAGE,
            format!(
                "no secret is named for {}: add NAME={} for it",
                left.join(", "),
                left[0]
            ),
        ))
    }

    fn not_started(&self, error: &io::Error) -> Failure {
        let exit = match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::NotFound => NO_SUCH_PROGRAM,
            io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => NOT_EXECUTABLE,
            _ if error.raw_os_error() == Some(Errno::ENOEXEC as i32) => NOT_EXECUTABLE,
            _ => OTHER,
        };
        let why = match error.kind() {
            io::ErrorKind::ArgumentListTooLong => {
                "its environment and arguments are together longer than the system takes".to_owned()
            }
            _ => error.to_string(),
        };
        Failure::new(
            exit,
            format!("cannot run {}: {why}", self.command[0].display()),
        )
    }
}

/// Whether a file can be run, as far as can be told without running it.
fn check(place: &Path) -> io::Result<()> {
    if fs::metadata(place)?.is_dir() {
        return Err(Errno::EISDIR.into());
    }
    Ok(access(place, AccessFlags::X_OK)?)
}

/// Parses a signal's name, with or without SIG.
pub(crate) fn signal(text: &str) -> Result<Signal, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    format!("SIG{name}")
        .parse()
        .map_err(|_| "write a signal's name, such as HUP or USR1".to_owned())
}
