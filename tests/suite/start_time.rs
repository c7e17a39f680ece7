//! How soon `latchkey exec` becomes the program: an application's start must not pay for where its secrets come from.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use testkit::binaries::sibling_binary;

/// From the last secret's arrival to the program's first words.
const BOUND: Duration = Duration::from_millis(10);

/// How often it is tried. The machine may be busy with other tests; what the command itself takes shows in its best.
const TRIES: usize = 20;

/// An agent that answers one batch and says when, in nanoseconds since 1970.
fn answer(listener: &UnixListener) -> u128 {
    let (mut stream, _) = listener.accept().expect("a connection");
    let mut request = Vec::new();
    let mut part = [0; 4096];
    // The body comes last, and it is one JSON object.
    while !request.ends_with(b"}") {
        let read = stream.read(&mut part).expect("a request");
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&request));
        request.extend_from_slice(&part[..read]);
    }
    let body =
        r#"{"secrets":[{"name":"a","value":"x","version":"1","backend":"aws"}],"errors":[]}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let now = now();
    stream.write_all(answer.as_bytes()).expect("it listens");
    now
}

/// The same clock as the program's.
fn now() -> u128 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.expect("it is after 1970").as_nanos()
}

#[test]
fn a_program_starts_within_ten_milliseconds_of_its_last_secret() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let agent =
        thread::spawn(move || -> Vec<u128> { (0..TRIES).map(|_| answer(&listener)).collect() });
    let mut started = Vec::new();
    for _ in 0..TRIES {
        let output = Command::new(sibling_binary("sandbox-latchkey").expect("the command"))
            .args(["exec", "a=A", "--", "date", "+%s%N"])
            .env("LATCHKEY_SOCKET", &socket)
            .stderr(Stdio::inherit())
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        started.push(text.trim().parse::<u128>().expect("a time"));
    }
    let answered = agent.join().expect("every request was a batch");
    let took = started
        .iter()
        .zip(&answered)
        .map(|(end, begin)| end - begin);
    let mut took: Vec<Duration> = took
        .map(|nanos| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
        .collect();
    took.sort_unstable();
    assert!(took[0] < BOUND, "{took:?}");
}
