//! The sandbox's backends behind one trait: what the conformance list and the demo need of each.
//!
//! A new backend is a file here and a line in [`start`].

mod aws;
pub mod azure;
mod file;
pub mod gcp;
mod pass;

use async_trait::async_trait;
use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::time::Duration;

use crate::agent::AgentSettings;
use crate::fake::{Attempt, Behaviour, Fault, Listener, Server, Special};
pub use crate::fake::{ECHOED, Forgotten};
use crate::sandbox::Sandbox;

/// The backends that the sandbox has, as the configuration names them.
pub const BACKENDS: [&str; 5] = ["aws", "azure", "file", "gcp", "pass"];

/// A backend of the sandbox.
#[async_trait]
pub trait Cloud: Debug + Send + Sync {
    /// The agent's settings with this backend only, as the default one.
    fn settings(&self, settings: AgentSettings) -> AgentSettings;

    /// Makes a namespace as the documentation says: a service account with a role of its own, which may read what is
    /// under the namespace's name, and the secret `NAMESPACE/database-password`.
    fn namespace(&self, sandbox: &Sandbox, name: &str);

    /// Makes a namespace whose service account names the role of the namespace `of`, which does not admit it.
    fn impostor(&self, sandbox: &Sandbox, name: &str, of: &str);

    /// Puts a secret, or a new version of it; returns the version that the agent should report, if that can be known.
    fn put(&self, name: &str, value: &[u8]) -> Option<String>;

    /// Makes every read of a value, or every exchange, go wrong until the result is dropped. `None`: it cannot.
    fn trouble(&self, trouble: Trouble) -> Option<Box<dyn Any + Send>>;

    /// Where it listens, if it is called over the network.
    fn listener(&self) -> Option<&Listener> {
        None
    }

    /// Refuses whoever comes from now on, or accepts them again.
    ///
    /// # Errors
    ///
    /// If this machine refuses it.
    async fn reachable(&self, reachable: bool) -> io::Result<()> {
        let listener = self.listener().ok_or(io::ErrorKind::Unsupported)?;
        if reachable {
            return listener.resume().await;
        }
        listener.stop().await;
        Ok(())
    }

    /// How many connections were opened so far, if there are any.
    fn opened(&self) -> usize {
        self.listener().map_or(0, Listener::opened)
    }

    /// Lets something on their way forget the open connections, if there are any; new ones are accepted.
    fn forget_connections(&self, how: Forgotten) {
        if let Some(listener) = self.listener() {
            listener.forget_connections(how);
        }
    }

    /// Ends every session before its time, if there are any.
    fn expire_sessions(&self) -> bool;

    /// Removes the role of a namespace's service account, if there is one.
    fn revoke(&self, namespace: &str) -> bool;

    /// The stage or label that names an older version, if the backend has one.
    fn previous_stage(&self) -> Option<&'static str>;

    /// Its own log.
    fn log(&self) -> Vec<Logged>;
}

/// A call, as a backend's own log has it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// What, by whom, and how it ended.
    pub line: String,
    /// Whether the backend refused it.
    pub was_refused: bool,
}

impl Logged {
    /// A call that ended with this error, if any.
    fn new(call: &str, error: Option<&str>) -> Self {
        Self {
            line: format!("{call}: {}", error.unwrap_or("ok")),
            was_refused: error.is_some(),
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// The connection breaks in the middle of an answer.
    Cut,
    /// Every call is refused, and the refusals repeat what was sent after [`ECHOED`].
    Echo,
    /// An answer never ends.
    Endless,
    /// Something else answers.
    Garbage,
    /// No answer comes.
    Hang,
    /// The answer is to another question.
    Misdirect,
    /// The token service has no answer from the cluster's issuer.
    SilentIssuer,
    /// Answers come, later.
    Slow,
    /// The backend asks to retry after so many seconds.
    Throttle(u64),
    /// Half of an answer comes.
    Truncated,
}

impl<S> From<Trouble> for Behaviour<S> {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Cut => Self::CutBody,
            Trouble::Echo => Self::Echo,
            Trouble::Endless => Self::Endless,
            Trouble::Garbage => Self::Html(200),
            Trouble::Hang => Self::Hang,
            Trouble::Misdirect => Self::Misdirect,
            Trouble::SilentIssuer => Self::IssuerSilent,
            Trouble::Slow => Self::Delay(Duration::from_millis(200)),
            Trouble::Throttle(seconds) => Self::Throttle(Some(seconds)),
            Trouble::Truncated => Self::TruncatedBody,
        }
    }
}

/// Makes a cloud's reads of a value, its exchanges or all its calls go wrong, whichever this is a trouble of.
fn trouble<C: Attempt, S: Special>(
    server: &Server<C, S>,
    trouble: Trouble,
    exchange: C::Operation,
    read: C::Operation,
) -> Option<Box<dyn Any + Send>> {
    let fault = match trouble {
        Trouble::Echo => Fault::everywhere(trouble.into()),
        Trouble::SilentIssuer => Fault::on(exchange, trouble.into()),
        _ => Fault::on(read, trouble.into()),
    };
    Some(Box::new(server.fault(fault)))
}

/// Starts the backend of this name, one of [`BACKENDS`], which trusts the tokens of the sandbox's cluster.
///
/// # Errors
///
/// If there is no such backend, or this machine refuses what it needs.
pub async fn start(name: &str, sandbox: &Sandbox) -> io::Result<Box<dyn Cloud>> {
    Ok(match name {
        "aws" => Box::new(aws::Aws::of(sandbox)),
        "azure" => Box::new(azure::Azure::start(sandbox).await?),
        "gcp" => Box::new(gcp::Gcp::start(sandbox).await?),
        "file" => Box::new(file::Files::create(sandbox)?),
        "pass" => Box::new(pass::Pass::create()?),
        other => return Err(io::Error::other(format!("there is no backend {other}"))),
    })
}
