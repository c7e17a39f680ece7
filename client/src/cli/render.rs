//! `latchkey render`: a template with secrets in it, written whole.

mod template;

use super::exec::signal;
use super::failure::{Failure, Told};
use super::sink::Sink;
use super::watch::{REST, SETTLE, Watch};
use super::{Leave, Reach, block_on, serve, terminal};
use crate::Client;
use clap::ArgGroup;
use clap::builder::{PathBufValueParser, TypedValueParser as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use template::Rendered;
use tokio::time::sleep;

/// Fill in a template with secrets
///
/// Templates are written in Jinja. {{ secret("prod/db") }} is a secret's value, {{ secret("prod/db", key="password") }}
/// one member of a JSON secret; stage= and backend= select others. Nothing is escaped unless the template says so:
/// {{ secret("prod/db") | tojson }}, {{ secret("prod/db") | b64encode }}, {{ secret("prod/db") | urlencode }}, which
/// leaves / as it is.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("whom").args(["pid", "pid_file"]))]
pub(crate) struct Render {
    /// Template file
    #[arg(value_parser = PathBufValueParser::new().try_map(source))]
    template: PathBuf,
    #[command(flatten)]
    sink: Sink,
    /// Stay, and render again when one of the secrets changes
    #[arg(long, requires = "out")]
    watch: bool,
    /// Signal to send after the file has changed, such as HUP
    #[arg(long, value_name = "SIGNAL", requires_all = ["watch", "whom"], value_parser = signal)]
    signal: Option<Signal>,
    /// Process to signal
    #[arg(long, requires = "signal", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// File with the ID of the process to signal, read each time
    #[arg(long, value_name = "FILE", requires = "signal")]
    pid_file: Option<PathBuf>,
}

impl Render {
    pub(crate) fn run(self, reach: &Reach) -> Result<ExitCode, Failure> {
        let client = reach.client()?;
        if !self.watch {
            return block_on(async {
                self.write(&client).await?;
                Ok(ExitCode::SUCCESS)
            });
        }
        serve(async {
            // As process 1 of a container, nothing else would end it.
            let mut leave = Leave::listen()?;
            let watch = async {
                let rendered = self.write(&client).await?;
                self.keep(&client, rendered).await
            };
            tokio::select! {
                never = watch => never,
                _ = leave.asked() => Ok(ExitCode::SUCCESS),
            }
        })
    }

    async fn write(&self, client: &Client) -> Result<Rendered, Failure> {
        let rendered = self.render(client).await?;
        self.sink.write(rendered.text.as_bytes())?;
        Ok(rendered)
    }

    async fn render(&self, client: &Client) -> Result<Rendered, Failure> {
        let source = fs::read_to_string(&self.template)
            .map_err(|error| Failure::other(format!("{}: {error}", self.template.display())))?;
        template::render(client, &self.template.to_string_lossy(), &source).await
    }

    /// Renders whenever a secret has changed, forever. A failure leaves the file as it was.
    async fn keep(&self, client: &Client, mut last: Rendered) -> Result<ExitCode, Failure> {
        let mut watch: Watch = last.watch();
        loop {
            let name = watch.changed(client).await;
            sleep(SETTLE).await;
            terminal::note(&format!("{name} has changed"));
            let mut told = Told::default();
            let rendered = loop {
                match self.render(client).await {
                    Ok(rendered) => break rendered,
                    Err(failure) => told.say(&failure),
                }
                sleep(REST).await;
            };
            watch = rendered.watch();
            if rendered.text == last.text {
                continue;
            }
            while let Err(failure) = self.sink.write(rendered.text.as_bytes()) {
                told.say(&failure);
                sleep(REST).await;
            }
            last = rendered;
            if let Err(failure) = self.tell() {
                failure.say();
            }
        }
    }

    /// Signals the process that reads the file.
    fn tell(&self) -> Result<(), Failure> {
        let Some(signal) = self.signal else {
            return Ok(());
        };
        let pid = match (&self.pid, &self.pid_file) {
            (Some(pid), _) => *pid,
            (None, Some(file)) => pid_in(file)?,
            (None, None) => return Ok(()),
        };
        kill(Pid::from_raw(pid), signal)
            .map_err(|error| Failure::other(format!("cannot signal process {pid}: {error}")))
    }
}

/// Parses a template's path; stdin has one as well.
fn source(path: PathBuf) -> Result<PathBuf, &'static str> {
    if path.as_os_str() == "-" {
        return Err("write /dev/stdin for stdin, or ./- for a file of that name");
    }
    Ok(path)
}

/// Reads the number in the file; 0 and less would be whole process groups.
fn pid_in(file: &Path) -> Result<i32, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::other(format!("{}: {error}", file.display())))?;
    text.trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| Failure::other(format!("{} holds no process id", file.display())))
}
