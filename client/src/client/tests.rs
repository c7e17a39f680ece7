//! Tests the client against a socket that answers as the test says.

use super::*;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// A socket that gives one answer after another, and records the requests.
pub(crate) struct Scripted {
    directory: TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

/// What to do with a request.
#[derive(Clone)]
pub(crate) enum Act {
    /// Answer it, and keep the connection.
    Answer(String),
    /// End the connection after these bytes of an answer.
    Cut(&'static str),
    /// Do not answer.
    Hang,
}

impl Scripted {
    /// Answers by `script`, repeating its last act.
    pub(crate) fn start(script: Vec<Act>) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("agent.sock"))?;
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let script = Arc::new(Mutex::new(script));
        let seen = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone(), seen.clone()));
            }
        });
        Ok(Self { directory, asked })
    }

    pub(crate) fn client(&self) -> Client {
        let socket = self.directory.path().join("agent.sock");
        Client::new(socket).patience(Duration::from_secs(5))
    }

    /// The requests so far, each with head and body.
    fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }
}

async fn serve(
    mut stream: UnixStream,
    script: Arc<Mutex<Vec<Act>>>,
    asked: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    loop {
        let request = request(&mut stream).await?;
        lock(&asked).push(request);
        let act = {
            let mut script = lock(&script);
            if script.len() > 1 {
                script.remove(0)
            } else {
                script[0].clone()
            }
        };
        match act {
            Act::Answer(answer) => stream.write_all(answer.as_bytes()).await.ok()?,
            Act::Cut(answer) => return stream.write_all(answer.as_bytes()).await.ok(),
            Act::Hang => std::future::pending().await,
        }
    }
}

/// Reads a request with its body, or returns `None` when the connection has ended.
async fn request(stream: &mut UnixStream) -> Option<String> {
    let mut text = String::new();
    let mut bytes = [0; 8192];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap_or_default()) {
                return Some(text);
            }
        }
        let read = stream
            .read(&mut bytes)
            .await
            .ok()
            .filter(|read| *read > 0)?;
        text.push_str(std::str::from_utf8(bytes.get(..read)?).ok()?);
    }
}

fn lock<T>(what: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Act {
    let length = body.len();
    Act::Answer(format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    ))
}

const SECRET: &str = r#"{"name":"n","value":"v","version":"1","backend":"aws"}"#;

/// How many milliseconds a request asks to wait.
fn asked_wait(head: &str) -> u64 {
    let wait = head
        .split_once("?wait=")
        .and_then(|(_, rest)| rest.split_once("ms "));
    let (wait, _) = wait.expect("a wait");
    wait.parse().expect("milliseconds")
}

fn unavailable() -> Act {
    let body = r#"{"error":"away","code":"unavailable","request_id":"1-1","step":"secret"}"#;
    answer(503, "retry-after: 1\r\n", body)
}

#[tokio::test]
async fn a_passing_failure_and_a_broken_connection_are_not_the_callers_business() {
    let script = vec![
        unavailable(),
        Act::Cut(""),
        Act::Cut("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
        answer(200, "etag: \"1\"\r\n", SECRET),
    ];
    let agent = Scripted::start(script).expect("a socket");
    let secret = agent.client().get("n").await.expect("a secret");
    assert_eq!(secret.value.expose_text(), Some("v"));
    assert_eq!(agent.asked().len(), 4);
}

#[tokio::test]
async fn without_retries_a_failure_is_told_as_it_was() {
    let agent = Scripted::start(vec![unavailable()]).expect("a socket");
    let error = agent.client().without_retries().get("n").await;
    let error = error.expect_err("it failed");
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(refusal.code, Code::Unavailable);
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(1)));
    assert_eq!(agent.asked().len(), 1);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_left_at_the_deadline() {
    let agent = Scripted::start(vec![Act::Hang]).expect("a socket");
    let client = agent.client().patience(Duration::from_millis(50));
    let error = client.identity().await.expect_err("it failed");
    assert!(matches!(error, ClientError::TimedOut), "{error:?}");
}

#[tokio::test]
async fn what_is_no_answer_of_an_agent_is_said_without_its_content() {
    let script = vec![
        answer(200, "", r#"{"name":"n","value":"hunter2"}"#),
        answer(200, "", "hunter2"),
        answer(418, "", "<html>hunter2</html>"),
    ];
    let agent = Scripted::start(script).expect("a socket");
    for _ in 0..3 {
        let error = agent.client().get("n").await.expect_err("it failed");
        assert!(matches!(error, ClientError::Unreadable(_)), "{error:?}");
        assert!(
            !format!("{error} {error:?}").contains("hunter2"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn an_ask_is_sent_as_it_says() {
    let agent = Scripted::start(vec![answer(200, "", SECRET)]).expect("a socket");
    let client = agent.client().header("X-Mine", "1");
    let ask = Ask {
        stage: Some("AWSPREVIOUS"),
        key: Some("a b"),
        fresh: true,
        ..Ask::latest("a/b?c")
    };
    client.read(&ask).await.expect("a secret");
    let asked = agent.asked();
    let head = asked[0].to_ascii_lowercase();
    assert!(
        head.starts_with("get /v1/secrets/a/b%3fc?stage=awsprevious&key=a%20b http/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\ncache-control: no-cache\r\n"), "{head}");
    assert!(head.contains("\r\nx-mine: 1\r\n"), "{head}");
}

#[tokio::test]
async fn a_wait_names_the_tag_and_ends_with_the_next_version_or_without_one() {
    let next = r#"{"name":"n","value":"new","version":"2","backend":"aws"}"#;
    let script = vec![
        answer(200, "etag: \"1\"\r\n", SECRET),
        Act::Answer("HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n".to_owned()),
        answer(200, "etag: \"2\"\r\n", next),
    ];
    let agent = Scripted::start(script).expect("a socket");
    let (client, ask) = (agent.client(), Ask::latest("n"));
    let secret = client.read(&ask).await.expect("a secret");
    let began = Instant::now();
    let same = client.wait(&ask, &secret.tag, Duration::from_secs(1)).await;
    assert!(same.expect("an answer").is_none());
    // The agent leaves, and is not asked again at the same moment.
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(agent.asked().len(), 2);
    let newer = client.wait(&ask, &secret.tag, Duration::from_secs(3)).await;
    let newer = newer.expect("an answer").expect("another version");
    assert_eq!((&*newer.version, newer.tag.0.as_str()), ("2", "\"2\""));
    let wait = agent.asked()[1].to_ascii_lowercase();
    assert!((1..=1000).contains(&asked_wait(&wait)), "{wait}");
    assert!(wait.contains("if-none-match: \"1\""), "{wait}");
}

#[tokio::test]
async fn a_wait_that_is_tried_again_asks_for_what_is_left_of_its_time() {
    let script = vec![unavailable(), answer(200, "etag: \"2\"\r\n", SECRET)];
    let agent = Scripted::start(script).expect("a socket");
    let known = Tag("\"1\"".to_owned());
    let (client, ask) = (agent.client(), Ask::latest("n"));
    let newer = client.wait(&ask, &known, Duration::from_secs(30)).await;
    newer.expect("an answer").expect("another version");
    let waits: Vec<u64> = agent.asked().iter().map(|head| asked_wait(head)).collect();
    let [first, second] = waits[..] else {
        panic!("{waits:?}");
    };
    // The agent has asked to wait a second before the retry.
    assert!(first <= 30_000 && second <= first - 1000, "{waits:?}");
}

#[tokio::test]
async fn names_are_asked_a_hundred_at_a_time_once_each_and_come_back_in_order() {
    let names: Vec<String> = (0..150).map(|number| format!("n{number}")).collect();
    let batch = |names: &[String]| {
        // In reverse, so that the order is the client's work.
        let secrets: Vec<_> = names
            .iter()
            .rev()
            .map(|name| serde_json::json!({"name": name, "value": "v", "version": "1", "backend": "aws"}))
            .collect();
        let body = serde_json::json!({"secrets": secrets, "errors": []});
        answer(200, "", &body.to_string())
    };
    let script = vec![batch(&names[..100]), batch(&names[100..])];
    let agent = Scripted::start(script).expect("a socket");
    let twice = names.iter().chain(&names).cloned();
    let got = agent.client().batch_get(twice).await.expect("a batch");
    let got: Vec<_> = got
        .secrets
        .iter()
        .map(|secret| secret.name.clone())
        .collect();
    assert_eq!(got, names);
    assert_eq!(agent.asked().len(), 2);
}

#[tokio::test]
async fn each_secret_of_a_batch_has_the_name_that_it_was_asked_for_by() {
    // As from a vault that does not tell capitals apart.
    let named = |name: &str, version: &str| serde_json::json!({"name": name, "value": "v", "version": version, "backend": "azure"});
    let secrets = [
        named("prod/db", "1"),
        named("prod/db", "1"),
        named("x", "2"),
    ];
    let body = serde_json::json!({"secrets": secrets, "errors": []});
    let agent = Scripted::start(vec![answer(200, "", &body.to_string())]).expect("a socket");
    let asked = ["Prod/DB", "X", "prod/db"];
    let got = agent.client().batch_get(asked).await.expect("a batch");
    let got: Vec<_> = got
        .secrets
        .iter()
        .map(|secret| (&*secret.name, &*secret.version))
        .collect();
    assert_eq!(got, [("Prod/DB", "1"), ("X", "2"), ("prod/db", "1")]);
}

#[tokio::test]
async fn what_a_batch_has_no_room_for_is_asked_for_alone_and_what_is_refused_is_told() {
    let errors = r#"{"secrets":[],"errors":[
        {"name":"n","error":"too large together","code":"too_large","status":413},
        {"name":"x","error":"no such secret","code":"not_found","status":404,"step":"secret"}]}"#;
    let script = vec![
        answer(200, "x-request-id: 7-7\r\n", errors),
        answer(200, "", SECRET),
    ];
    let agent = Scripted::start(script).expect("a socket");
    let batch = agent.client().batch_get(["n", "x"]).await.expect("a batch");
    assert_eq!(batch.secrets.len(), 1);
    let [(name, refusal)] = &batch.refused[..] else {
        panic!("{batch:?}");
    };
    assert_eq!((&**name, refusal.code), ("x", Code::NotFound));
    assert_eq!(refusal.request_id, "7-7");
}

#[tokio::test]
async fn what_is_asked_for_alone_after_a_batch_is_asked_of_the_same_backend() {
    let errors = r#"{"secrets":[],"errors":[
        {"name":"n","error":"too large together","code":"too_large","status":413}]}"#;
    let agent = Scripted::start(vec![answer(200, "", errors), answer(200, "", SECRET)]);
    let agent = agent.expect("a socket");
    let batch = agent.client().batch_get_from(Some("a b"), ["n"]).await;
    assert_eq!(batch.expect("a batch").secrets.len(), 1);
    let [first, second] = &agent.asked()[..] else {
        panic!("{:?}", agent.asked());
    };
    assert!(first.starts_with("POST /v1/secrets:batchGet?backend=a%20b "));
    assert!(second.starts_with("GET /v1/secrets/n?backend=a%20b "));
}

#[tokio::test]
async fn a_word_that_is_new_in_a_batch_costs_no_more_than_the_name_that_it_is_about() {
    let body = r#"{"secrets":[{"name":"n","value":"v","version":"1","backend":"aws"}],"errors":[
        {"name":"x","error":"not today","code":"quota_of_tuesday","status":403,"step":"dance"},
        {"name":"y","error":"nor here","code":"denied","status":403,"step":"dance"}]}"#;
    let agent = Scripted::start(vec![answer(200, "", body)]).expect("a socket");
    let batch = agent.client().batch_get(["n", "x", "y"]).await;
    let batch = batch.expect("a batch");
    assert_eq!(batch.secrets.len(), 1);
    let refused: Vec<_> = batch
        .refused
        .iter()
        .map(|(name, refusal)| (&**name, refusal.code, &*refusal.message, refusal.step))
        .collect();
    let right = [
        ("x", Code::Denied, "not today", None),
        ("y", Code::Denied, "nor here", None),
    ];
    assert_eq!(refused, right);
}

#[tokio::test]
async fn what_no_header_is_called_is_the_callers_fault_and_not_the_agents() {
    let agent = Scripted::start(vec![answer(200, "", SECRET)]).expect("a socket");
    let error = agent.client().header("X-Mine: 1", "1").get("n").await;
    let error = error.expect_err("it failed");
    assert_eq!(error.code(), Some(Code::InvalidRequest), "{error:?}");
    assert!(agent.asked().is_empty());
}

#[tokio::test]
async fn what_is_said_and_empty_is_not_the_same_as_what_was_not_said() {
    let agent = Scripted::start(vec![answer(200, "", SECRET)]).expect("a socket");
    let (client, known) = (agent.client(), Tag("\"1\"".to_owned()));
    let ask = |change: fn(&mut Ask<'_>)| {
        let mut ask = Ask::latest("n");
        change(&mut ask);
        ask
    };
    let asks = [
        ask(|ask| ask.key = Some("")),
        ask(|ask| ask.version = Some("")),
        ask(|ask| ask.stage = Some("")),
        ask(|ask| ask.backend = Some("")),
    ];
    for ask in asks {
        let read = client.read(&ask).await.expect_err("it is refused");
        let wait = client.wait(&ask, &known, Duration::from_secs(1)).await;
        let wait = wait.expect_err("it is refused");
        assert_eq!(read.code(), Some(Code::InvalidRequest), "{read:?}");
        assert_eq!(wait.code(), Some(Code::InvalidRequest), "{wait:?}");
    }
    let batch = client.batch_get_from(Some(""), ["n"]).await;
    let error = batch.expect_err("it is refused");
    assert_eq!(error.code(), Some(Code::InvalidRequest), "{error:?}");
    assert!(agent.asked().is_empty());
}

#[tokio::test]
async fn the_longest_times_are_times_like_any_other() {
    let body = r#"{"error":"away","code":"unavailable","request_id":"1-1"}"#;
    let script = vec![
        answer(200, "", SECRET),
        answer(200, "", SECRET),
        answer(200, "", r#"{"secrets":[],"errors":[]}"#),
        answer(200, "", r#"{"status":"healthy","backend":"aws"}"#),
        answer(503, &format!("retry-after: {}\r\n", u64::MAX), body),
    ];
    let agent = Scripted::start(script).expect("a socket");
    let (client, ask) = (agent.client().patience(Duration::MAX), Ask::latest("n"));
    let secret = client.read(&ask).await.expect("a secret");
    let newer = client.wait(&ask, &secret.tag, Duration::MAX).await;
    newer.expect("an answer").expect("a secret");
    client.batch_get(["n"]).await.expect("a batch");
    client.readiness().await.expect("it is ready");
    let error = client.read(&ask).await.expect_err("it failed");
    assert_eq!(error.code(), Some(Code::Unavailable));
    assert_eq!(agent.asked().len(), 5);
}
