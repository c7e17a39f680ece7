//! The program `latchkey-csi`: arguments, environment, sockets, shutdown.

use super::mount;
use super::node::NodeService;
use super::plugin::Plugin;
use super::socket::Socket;
use super::volume::Store;
use super::{DRIVER, named};
use crate::cli::{exit, keep_secrets_in, log_to_stderr, parse};
use crate::config;
use crate::handover::make_directory;
use clap::Parser;
use std::collections::HashSet;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::task::TaskTracker;

/// How often to look for volumes that nobody will unpublish any more.
const ROUND: Duration = Duration::from_secs(60);

/// How long calls in progress may take to finish when the mounter is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// The options of the store's tmpfs. A volume has five entries at most while it is made (its directory, where that is
/// staged, its socket, and each of socket and record under another name first), and there is room for 8192 records of a
/// page.
const STORE: &str = "mode=0700,size=32m,nr_inodes=40k";

/// How often to check that somebody answers on the sockets.
const CHECK: Duration = Duration::from_secs(1);

/// CSI driver that mounts each pod's own latchkey socket, or files with its secrets, into the pod
#[derive(Debug, Parser)]
#[command(name = "latchkey-csi", version)]
struct Arguments {
    /// The kubelet's root directory, by the same path as on the node
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/kubelet")]
    kubelet_root: PathBuf,
    /// The node's name [default: NODE_NAME]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Log level, as in the agent's log.level [default: RUST_LOG, or else info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

/// Runs the mounter.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match parse::<Arguments>() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    keep_secrets_in();
    let variable = |wanted| {
        config::environment()
            .find(|(name, value)| name == wanted && !value.is_empty())
            .map(|(_, value)| value)
    };
    let Some(node) = arguments.node.or_else(|| variable("NODE_NAME")) else {
        let text = "NODE_NAME is not set: take it from spec.nodeName by the downward API";
        return fail(exit::CONFIG, &text);
    };
    if !arguments.kubelet_root.is_absolute() {
        return fail(exit::USAGE, &"--kubelet-root takes an absolute path");
    }
    let level = match log_level(arguments.log, variable("RUST_LOG")) {
        Ok(level) => level,
        Err(wrong) => return fail(exit::CONFIG, &wrong),
    };
    let _logs = match log_to_stderr(&level) {
        Ok(logs) => logs,
        Err(error) => return fail(exit::UNAVAILABLE, &error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => match runtime.block_on(run(node, &arguments.kubelet_root)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(exit::UNAVAILABLE, &error),
        },
        Err(error) => fail(exit::UNAVAILABLE, &error),
    }
}

/// What to log: what the option says, or else RUST_LOG.
fn log_level(option: Option<String>, variable: Option<String>) -> Result<String, String> {
    let (whose, level) = match (option, variable) {
        (Some(level), _) => ("--log", level),
        (None, Some(level)) => ("RUST_LOG", level),
        (None, None) => return Ok("info".to_owned()),
    };
    config::check_log_level(&level).map_err(|wrong| format!("{whose} {wrong}"))?;
    Ok(level)
}

async fn run(name: String, kubelet: &Path) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let plugins = kubelet.join("plugins");
    let directory = plugins.join(DRIVER);
    let store = open_store(&plugins, &directory)?;
    let node = Arc::new(NodeService::new(name, kubelet.to_owned(), store));
    let endpoint = directory.join("csi.sock");
    let plugin = Arc::new(Plugin {
        node: node.clone(),
        endpoint: endpoint.clone(),
    });
    let calls = TaskTracker::new();
    // Registration comes second: the kubelet calls CSI's services as soon as it sees that socket.
    let registry = kubelet
        .join("plugins_registry")
        .join(format!("{DRIVER}-reg.sock"));
    let mut sockets = [
        Socket::serve(&endpoint, &plugin, &calls)?,
        Socket::serve(&registry, &plugin, &calls)?,
    ];
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = node.name,
        endpoint = %endpoint.display(),
        "ready"
    );
    // Runs concurrently: a hung agent delays it at each volume.
    let mut tending = pin!(async {
        let mut unrecorded = HashSet::new();
        loop {
            node.tend(&mut unrecorded).await;
            sleep(ROUND).await;
        }
    });
    let mut checks = interval_at(Instant::now() + CHECK, CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut outcome = Ok(());
    while outcome.is_ok() {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut tending => {}
            _ = checks.tick() => {
                for socket in &mut sockets {
                    outcome = outcome.and(socket.keep());
                }
            }
        }
    }
    // The socket files stay: to the kubelet the driver is still there, and it retries until the next mounter has taken
    // them over.
    drop(sockets);
    calls.close();
    let _ = timeout(DRAIN, calls.wait()).await;
    tracing::info!("ended");
    outcome
}

/// Opens the store in memory, which outlives the mounter.
fn open_store(plugins: &Path, directory: &Path) -> io::Result<Store> {
    let store = Store::of(directory);
    for path in [plugins, directory, store.root()] {
        make_directory(path, 0o755).map_err(|error| named(error, path))?;
    }
    if store.is_there()? {
        // Another version's may be smaller, which is no reason not to serve its volumes.
        if let Err(error) = mount::resize(store.root(), STORE) {
            tracing::warn!(%error, "the memory keeps the size that it was mounted with");
        }
    } else {
        mount::memory(store.root(), STORE)?;
    }
    if !store.is_there()? {
        let text = "is mounted, but is no memory of root's alone: unmount it";
        return Err(named(io::Error::other(text), store.root()));
    }
    store.furnish()?;
    Ok(store)
}

fn fail(code: u8, why: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "latchkey-csi: {why}");
    code.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_said_by_the_option_or_else_by_rust_log() {
        let of = |option: Option<&str>, variable: Option<&str>| {
            log_level(option.map(Into::into), variable.map(Into::into))
        };
        assert_eq!(of(None, None).as_deref(), Ok("info"));
        assert_eq!(of(None, Some("debug")).as_deref(), Ok("debug"));
        assert_eq!(of(Some("warn"), Some("debg")).as_deref(), Ok("warn"));
        for (wrong, told) in [
            (of(Some("wran"), Some("debug")), "--log is \"wran\", "),
            (of(Some(""), None), "--log is \"\", "),
            (of(None, Some("debg")), "RUST_LOG is \"debg\", "),
        ] {
            let wrong = wrong.expect_err(told);
            assert!(wrong.starts_with(told), "{wrong}");
        }
    }
}
