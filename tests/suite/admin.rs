//! The operator's port.

use crate::sandbox_with_a_pod;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use testkit::PATIENCE;
use testkit::agent::AgentProcess;
use testkit::sandbox::Sandbox;
use tokio::io::AsyncReadExt as _;

#[tokio::test]
async fn where_a_node_has_no_ipv6_all_addresses_of_the_admin_port_are_those_of_ipv4() {
    needs_workloads!();
    let sandbox = Sandbox::start().await.expect("a sandbox");
    sandbox.aws_namespace("test");
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr());
    let address = free.expect("a port");
    let settings = sandbox.settings().expect("settings");
    let settings = settings.set("listen.admin", format!("[::]:{}", address.port()));
    let settings = settings.on_a_machine_without("ipv6");
    let agent = settings.start().await.expect("an agent");
    agent.until_line("\"ready\"").await.expect("it is ready");
    let (told, _) = told_at(address, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".into()).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
}

#[tokio::test]
async fn the_admin_port_tells_alive_ready_and_what_is_missing() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    sandbox.kube.hang();
    let settings = sandbox.settings().expect("settings");
    let agent = settings.start().await.expect("a process");
    agent.until_line("\"bound\"").await.expect("it starts");
    agent.until_served().await.expect("it listens");
    let livez = agent.admin("/livez").await.expect("an answer");
    assert_eq!(livez, (200, "ok\n".to_owned()));
    let (status, text) = agent.admin("/readyz").await.expect("an answer");
    assert_eq!(status, 503);
    assert!(text.contains("the list of this node's pods"), "{text}");
    sandbox.kube.heal();
    agent.until_ready().await.expect("it becomes ready");
    assert_eq!(agent.admin("/readyz").await.expect("an answer").0, 200);
    assert_eq!(
        agent.admin("/v1/secrets/x").await.expect("an answer").0,
        404
    );
}

/// What the admin port says to these bytes until it ends the connection, or for five seconds, and how long that took.
async fn told_by_admin(agent: &AgentProcess, asked: Vec<u8>) -> (String, Duration) {
    told_at(agent.admin_address(), asked).await
}

/// What is said at that address.
async fn told_at(address: SocketAddr, asked: Vec<u8>) -> (String, Duration) {
    let told = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // It may have ended before all of it is sent.
        let _ended = stream.write_all(&asked);
        let (mut text, begun) = (Vec::new(), Instant::now());
        let _ended = stream.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok::<_, std::io::Error>((text, begun.elapsed()))
    });
    told.await.expect("it ends").expect("a connection")
}

#[tokio::test]
async fn whoever_asks_the_admin_port_for_much_at_once_is_answered_once_at_most() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let asked = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let (text, _) = told_by_admin(&agent, asked.to_vec()).await;
    assert_eq!(text.matches("HTTP/1.1 200").count(), 1, "{text:.200}");
    let (text, _) = told_by_admin(&agent, asked.repeat(100)).await;
    // The end of a connection with more to read may take the one answer along (tcp(7)).
    assert!(text.matches("HTTP/1.1 200").count() <= 1, "{text:.200}");
}

#[tokio::test]
async fn the_admin_port_keeps_little_of_who_never_ends_asking() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let asked = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(64_000));
    let (_, took) = told_by_admin(&agent, asked.into_bytes()).await;
    assert!(took < Duration::from_secs(3), "it is waited for more");
}

#[tokio::test]
async fn the_admin_port_follows_nobody_through_a_body() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    // More than the kernel takes for a process that does not read.
    let zeros = "0".repeat(64 << 20);
    let endless = format!("GET /livez HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{zeros}");
    let address = agent.admin_address();
    let sent = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).expect("a connection");
        stream.set_write_timeout(Some(PATIENCE)).expect("a bound");
        stream.write_all(endless.as_bytes())
    });
    let ended = sent.await.expect("it ends").expect_err("it is read");
    let kinds = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
    assert!(kinds.contains(&ended.kind()), "{ended}");
}

#[tokio::test]
async fn whoever_holds_connections_of_the_admin_port_keeps_no_probe_out() {
    needs_workloads!();
    let (sandbox, _pod) = sandbox_with_a_pod().await;
    let agent = sandbox.agent().await.expect("an agent");
    let mut held = Vec::new();
    for _ in 0..65 {
        let stream = tokio::net::TcpStream::connect(agent.admin_address()).await;
        held.push(stream.expect("a connection"));
    }
    // Long before it has had its time to ask, the first has made room for the last.
    let end = tokio::time::timeout(Duration::from_secs(5), held[0].read_u8()).await;
    end.expect("it ends").expect_err("and without an answer");
    assert_eq!(agent.admin("/livez").await.expect("an answer").0, 200);
}
