//! The peer: AWS's own agent (`cargo install --locked aws_secretsmanager_agent`). It holds the same value for whoever
//! knows its token, on a port of the loopback interface.

use crate::load::Address;
use crate::servers::{self, Server, Stage};
use crate::{Outcome, uncached};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Its name in the tables.
pub(crate) const NAME: &str = "AWS agent";

/// The word that every request must bring.
const TOKEN: &str = "bench";

/// Starts it with a session of the pod's role, and values that stay.
pub(crate) async fn start(stage: &Stage, program: &Path) -> Outcome<Server> {
    let session = uncached::session(stage).await?;
    // Its port is a setting and cannot be 0: one that was free just now.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port();
    let settings = stage.sandbox.directory().join("peer.toml");
    std::fs::write(
        &settings,
        format!(
            "http_port = \"{port}\"\nttl_seconds = \"3600\"\nmax_conn = \"1000\"\nregion = \"{}\"\n\
             log_level = \"none\"\nlog_to_file = false\nvalidate_credentials = false\n",
            session.region
        ),
    )?;
    let [key, secret, token] = &session.credentials;
    let environment = [
        ("AWS_ENDPOINT_URL", session.endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_SESSION_TOKEN", token),
        ("AWS_REGION", &session.region),
        ("AWS_TOKEN", TOKEN),
    ];
    let child = servers::start(
        &[
            &program.to_string_lossy(),
            "--config",
            &settings.to_string_lossy(),
        ],
        &environment,
    )?;
    let address = Address::Peer {
        port,
        header: format!("X-Aws-Parameters-Secrets-Token: {TOKEN}"),
    };
    servers::server(
        NAME,
        child,
        address,
        "/secretsmanager/get?secretId=bench/small",
        "/secretsmanager/get?secretId=bench/large",
    )
    .await
}
