//! `latchkey proxy`: the socket on loopback, for this pod's programs and nobody's web page.

use super::{Client, command_in, ended};
use futures::future::join_all;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use testkit::aws::Operation;
use testkit::kube::PodSpec;
use testkit::sandbox::{ACCOUNT, password};
use testkit::{PATIENCE, until};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::{sleep, timeout};

/// A running proxy.
struct Proxy {
    child: Child,
    address: SocketAddr,
    _stderr: Lines<BufReader<ChildStderr>>,
}

impl Proxy {
    async fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("it starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("its stderr")).lines();
        let line = timeout(PATIENCE, stderr.next_line())
            .await
            .expect("it speaks");
        let line = line.expect("its stderr").expect("a line");
        let address = line.strip_prefix("latchkey: listening on http://");
        let address = address.unwrap_or_else(|| panic!("{line}"));
        Self {
            child,
            address: address.parse().expect("an address"),
            _stderr: stderr,
        }
    }

    /// Sends bytes and reads what comes until the other side closes.
    async fn raw(&self, request: &str) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address)
                .await
                .expect("a connection");
            stream
                .write_all(request.as_bytes())
                .await
                .expect("it is sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        timeout(PATIENCE, exchange)
            .await
            .expect("an answer in time")
    }

    async fn get(&self, target: &str, headers: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        self.raw(&request).await
    }

    async fn stop(&mut self) -> ExitStatus {
        let pid = self
            .child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .expect("a pid");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("a signal");
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.expect("it ends").expect("a status")
    }
}

const LISTEN: [&str; 3] = ["proxy", "--listen", "127.0.0.1:0"];
const OWN: &str = "Host: localhost\r\n";

#[track_caller]
fn is(answer: &str, status: u16, text: &str) {
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status} ")),
        "{answer}"
    );
    assert!(answer.contains(text), "{answer}");
}

#[tokio::test]
async fn a_program_without_unix_sockets_asks_on_loopback_and_is_the_pod() {
    needs_workloads!();
    let client = Client::start().await;
    client.sandbox.aws_namespace("prod");
    let mut proxy = Proxy::start(client.command(&LISTEN)).await;
    let secret = "/v1/secrets/test/database-password";
    let answer = proxy.get(secret, OWN).await;
    is(&answer, 200, &password("test"));
    let lower = answer.to_ascii_lowercase();
    for header in ["etag: \"", "x-request-id: ", "cache-control: no-store"] {
        assert!(lower.contains(header), "{answer}");
    }
    let agents = &answer[lower.find("x-request-id: ").expect("an id") + 14..];
    let id = agents.split("\r\n").next().expect("an id");
    let line = client
        .agent
        .until_audit(|line| line["request_id"] == id)
        .await
        .expect("a line");
    assert_eq!(
        (&line["pod"], &line["outcome"]),
        (&"web".into(), &"ok".into())
    );
    is(
        &proxy.get("/v1/secrets/prod/database-password", OWN).await,
        403,
        "denied",
    );
    is(
        &proxy.get("/v1/secrets/test/none", OWN).await,
        404,
        "not_found",
    );
    is(
        &proxy
            .get(secret, &format!("{OWN}Accept: text/plain\r\n"))
            .await,
        200,
        "text/plain",
    );
    // The JDK's own client asks to speak HTTP/2.
    let upgrade =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    is(
        &proxy.get(secret, &format!("{OWN}{upgrade}")).await,
        200,
        &password("test"),
    );
    let body = r#"{"names":["test/database-password"]}"#;
    let post = format!(
        "POST /v1/secrets:batchGet HTTP/1.1\r\nConnection: close\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    is(&proxy.raw(&post).await, 200, &password("test"));
    let aws = "/secretsmanager/get?secretId=test%2Fdatabase-password";
    let token = format!("{OWN}X-Aws-Parameters-Secrets-Token: t\r\n");
    is(&proxy.get(aws, &token).await, 200, "SecretString");
    assert!(proxy.stop().await.success());
}

#[tokio::test]
async fn a_web_page_does_not_reach_the_pods_secrets_through_a_browser() {
    needs_workloads!();
    let client = Client::start().await;
    let arguments = [
        &LISTEN[..],
        &[
            "--require-header",
            "x-mine",
            "--allow-host",
            "secrets.local",
        ],
    ]
    .concat();
    let proxy = Proxy::start(client.command(&arguments)).await;
    let target = "/v1/secrets/test/database-password";
    let mine = "X-Mine: 1\r\n";
    for host in ["localhost", "127.0.0.1:8080", "[::1]", "secrets.local"] {
        is(
            &proxy.get(target, &format!("{mine}Host: {host}\r\n")).await,
            200,
            "value",
        );
    }
    for headers in [
        OWN.to_owned(),
        format!("{mine}Host: rebound.example\r\n"),
        format!("{mine}{OWN}Origin: http://evil.example\r\n"),
        format!("{mine}{OWN}Sec-Fetch-Site: cross-site\r\n"),
        format!("{mine}{OWN}Sec-Fetch-Site: same-site\r\n"),
        format!("{mine}{OWN}X-Forwarded-For: 10.0.0.1\r\n"),
        format!("{mine}{OWN}Referer: http://localhost/\r\n"),
    ] {
        let answer = proxy.get(target, &headers).await;
        is(&answer, 400, "invalid_request");
        assert!(!answer.contains(&password("test")), "{answer}");
    }
    assert_eq!(client.sandbox.aws.count_of(Operation::GetSecretValue), 4);
}

#[tokio::test]
async fn it_does_not_listen_where_others_than_the_pod_reach_it() {
    needs_workloads!();
    let client = Client::start().await;
    let everywhere = ["proxy", "--listen", "0.0.0.0:0"];
    client
        .run(&everywhere)
        .await
        .failed(2, "no loopback address");
    client
        .run(&["proxy", "--listen", "localhost:8080"])
        .await
        .failed(2, "such as 127.0.0.1:8080");
    // No request's host would be one of these.
    for host in ["secrets.local:18082", "http://secrets.local", "::1", ""] {
        let arguments = [&LISTEN[..], &["--allow-host", host]].concat();
        client.run(&arguments).await.failed(2, "--allow-host");
    }
    let spec = PodSpec {
        host_network: true,
        ..PodSpec::of("test", "host", ACCOUNT)
    };
    let pod = client.sandbox.pod_of(spec).await.expect("a pod");
    let socket = client.sandbox.socket();
    ended(command_in(&pod, &socket, &LISTEN))
        .await
        .failed(2, "hostNetwork");
    let forced = [&LISTEN[..], &["--force"]].concat();
    let proxy = Proxy::start(command_in(&pod, &socket, &forced)).await;
    is(
        &proxy.get("/v1/identity", OWN).await,
        200,
        "\"host_network\":true",
    );
}

#[tokio::test]
async fn it_answers_what_it_has_taken_before_it_ends_and_finds_the_next_agent() {
    needs_workloads!();
    let mut client = Client::start().await;
    let mut proxy = Proxy::start(client.command(&LISTEN)).await;
    is(&proxy.get("/v1/identity", OWN).await, 200, "web");
    client.agent.stop().await.expect("it ends");
    let unreachable = proxy.get("/secretsmanager/get?secretId=x", OWN).await;
    is(&unreachable, 503, "unavailable");
    // In the shape of AWS' agent as well, whose clients ask here too.
    is(&unreachable, 503, r#""__type":"ConnectionError""#);
    is(&unreachable, 503, r#""message":"the proxy cannot reach"#);
    let _agent = client.sandbox.agent().await.expect("an agent");
    is(&proxy.get("/v1/identity", OWN).await, 200, "web");
    let (gate, _held) = client.sandbox.aws.hold(Operation::GetSecretValue);
    let address = proxy.address;
    let taken = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET /v1/secrets/test/database-password HTTP/1.1\r\n{OWN}\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    };
    let ends = async {
        gate.reached(1).await;
        let (status, ()) = tokio::join!(proxy.stop(), async {
            // The listener has gone before the answer has come.
            let refused = async { while TcpStream::connect(address).await.is_ok() {} };
            timeout(PATIENCE, refused)
                .await
                .expect("it listens no more");
            gate.open();
        });
        status
    };
    let (answer, status) = timeout(PATIENCE, async { tokio::join!(taken, ends) })
        .await
        .expect("in time");
    is(&answer, 200, &password("test"));
    assert!(status.success());
}

#[tokio::test]
async fn a_wait_does_not_keep_it_from_ending() {
    needs_workloads!();
    let client = Client::start().await;
    let mut proxy = Proxy::start(client.command(&LISTEN)).await;
    let secret = "/v1/secrets/test/database-password";
    let read = proxy.get(secret, OWN).await;
    let tag = read.lines().find(|line| line.starts_with("etag: "));
    let tag = tag
        .and_then(|line| line.strip_prefix("etag: "))
        .expect("a tag");
    let mut waits = TcpStream::connect(proxy.address).await.expect("it listens");
    let request = format!("GET {secret}?wait=60s HTTP/1.1\r\n{OWN}If-None-Match: {tag}\r\n\r\n");
    waits
        .write_all(request.as_bytes())
        .await
        .expect("it is sent");
    // The wait has begun.
    client.until_reads(2).await;
    let began = Instant::now();
    assert!(proxy.stop().await.success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let mut answer = String::new();
    waits.read_to_string(&mut answer).await.expect("an answer");
    is(&answer, 304, "");
}

#[tokio::test]
async fn connections_that_are_idle_keep_nobody_else_waiting() {
    needs_workloads!();
    let client = Client::start().await;
    let proxy = Proxy::start(client.command(&LISTEN)).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        let ask = async {
            let mut stream = TcpStream::connect(proxy.address).await?;
            let request = format!("GET /v1/identity HTTP/1.1\r\n{OWN}\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await?;
            std::io::Result::Ok((stream, answer))
        };
        let asked = timeout(PATIENCE, ask).await.expect("an answer in time");
        let (stream, answer) = asked.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        idle.push(stream);
    }
    let answer = proxy.get("/v1/secrets/test/database-password", OWN).await;
    is(&answer, 200, &password("test"));
    drop(idle);
}

#[tokio::test]
async fn a_burst_leaves_the_pods_other_processes_their_connections() {
    needs_workloads!();
    let client = Client::start().await;
    let mut proxy = Proxy::start(client.command(&LISTEN)).await;
    for number in 0..64 {
        client.sandbox.aws_secret(&format!("test/s-{number}"), "x");
    }
    // All at once: they end when the vault lets them.
    let (gate, held) = client.sandbox.aws.hold(Operation::GetSecretValue);
    let targets = (0..64).map(|number| format!("/v1/secrets/test/s-{number}"));
    let targets: Vec<_> = targets.collect();
    let burst = join_all(targets.iter().map(|target| proxy.get(target, OWN)));
    let (answers, ()) = tokio::join!(burst, async {
        gate.reached(32).await;
        gate.open();
    });
    drop(held);
    client
        .run(&["--timeout", "2", "get", "test/database-password"])
        .await
        .printed();
    for answer in &answers {
        is(answer, 200, "value");
    }
    let until_open = async |at_most: f64| {
        let open = async || client.agent.metric("latchkey_connections").await;
        let is_open = async || open().await.expect("metrics") <= at_most;
        until("connections let go of", is_open).await;
    };
    let began = Instant::now();
    until_open(4.0).await;
    assert!(began.elapsed() < Duration::from_secs(3));
    until_open(0.0).await;
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(proxy.stop().await.success());
}

#[tokio::test]
async fn a_target_that_no_agent_takes_is_refused_and_harms_nobody() {
    needs_workloads!();
    let client = Client::start().await;
    let proxy = Proxy::start(client.command(&LISTEN)).await;
    let answer = proxy
        .get(&format!("/v1/secrets/{}", "a".repeat(65_500)), OWN)
        .await;
    is(&answer, 414, "too_large");
    let answer = proxy.get("/v1/secrets/test/database-password", OWN).await;
    is(&answer, 200, &password("test"));
    let name = "a".repeat(70_000);
    client.run(&["get", &name]).await.failed(2, "8192 bytes");
}

#[tokio::test]
async fn only_a_wait_has_longer_than_the_timeout_before_the_proxy_gives_up() {
    needs_workloads!();
    let client = Client::start().await;
    // The proxy's own first question is to find a pod that is known.
    client.run(&["whoami"]).await.printed();
    let arguments = [&["--timeout", "3"], &LISTEN[..]].concat();
    let proxy = Proxy::start(client.command(&arguments)).await;
    let (gate, _held) = client.sandbox.aws.hold(Operation::GetSecretValue);
    let secret = "/v1/secrets/test/database-password";
    let waiting = format!("{secret}?wait=30s");
    let tag = format!("{OWN}If-None-Match: \"another\"\r\n");
    let ask = async {
        let given_up = proxy.get(secret, OWN).await;
        // The other has as long behind it by now.
        sleep(Duration::from_millis(500)).await;
        gate.open();
        given_up
    };
    let (given_up, waited) = tokio::join!(ask, proxy.get(&waiting, &tag));
    is(&given_up, 504, "the agent does not answer");
    is(&waited, 200, &password("test"));
}

#[tokio::test]
async fn a_request_has_one_deadline_for_all_of_its_steps() {
    needs_workloads!();
    // Longer than the proxy waits.
    let client = Client::with(|settings| settings.set("backends.aws.timeout", "10s")).await;
    client.run(&["whoami"]).await.printed();
    let arguments = [&["--timeout", "6"], &LISTEN[..]].concat();
    let proxy = Proxy::start(client.command(&arguments)).await;
    let body = r#"{"names": ["test/database-password"]}"#;
    let (begin, rest) = body.split_at(10);
    let head = format!(
        "POST /v1/secrets:batchGet HTTP/1.1\r\n{OWN}Content-Length: {}\r\n\r\n{begin}",
        body.len()
    );
    is(&proxy.raw(&head).await, 504, "the body does not arrive");
    // What the body takes, the agent has no more.
    let (_gate, _held) = client.sandbox.aws.hold(Operation::GetSecretValue);
    let began = Instant::now();
    let mut stream = TcpStream::connect(proxy.address).await.expect("it listens");
    stream.write_all(head.as_bytes()).await.expect("it is sent");
    sleep(Duration::from_secs(5)).await;
    stream.write_all(rest.as_bytes()).await.expect("it is sent");
    let mut answer = [0; 500];
    let read = timeout(PATIENCE, stream.read(&mut answer)).await;
    let read = read.expect("an answer in time").expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..read]);
    is(&answer, 504, "the agent does not answer");
    // With a deadline for each of its steps it would be eleven.
    assert!(began.elapsed() < Duration::from_secs(10));
}
