//! From the arrival of the last secret to the program that `latchkey exec` starts with it.

use crate::report::Report;
use crate::{Outcome, Pace, process};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Instant;
use testkit::binaries::sibling_binary;

/// How many secrets each program is given, all of them in one answer.
const SECRETS: usize = 8;

pub(crate) async fn measure(pace: Pace, report: &mut Report) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&socket)?;
    let names: Vec<String> = (0..SECRETS).map(|n| format!("bench/secret-{n}")).collect();
    let latchkey = sibling_binary("sandbox-latchkey")?;
    let mut took = Vec::new();
    for _ in 0..pace.rounds * 20 {
        process::until_quiet().await?;
        let mut child = Command::new(&latchkey)
            .arg("exec")
            .args(&names)
            .args(["--", "/bin/echo", "here"])
            .env_clear()
            .env("LATCHKEY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        // Time counts from before the answer is written to after the program's own first words are read.
        let answered = answer(&listener.accept()?.0, &names)?;
        let mut said = [0; 4];
        child
            .stdout
            .take()
            .ok_or("no output")?
            .read_exact(&mut said)?;
        took.push(answered.elapsed().as_secs_f64() * 1000.0);
        child.wait()?;
    }
    report.spread("secrets_to_program_ms", took);
    Ok(())
}

/// Gives what an agent would, and when. The answer is made ready before, and needs no vault.
fn answer(mut stream: &UnixStream, names: &[String]) -> Outcome<Instant> {
    let secrets: Vec<_> = names
        .iter()
        .map(
            |name| json!({"name": name, "value": "x".repeat(64), "version": "1", "backend": "aws"}),
        )
        .collect();
    let body = json!({"secrets": secrets, "errors": []}).to_string();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut request = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while request.read_line(&mut line)? > 2 {
        if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(": ") {
            length = value.trim().parse()?;
        }
        line.clear();
    }
    request.read_exact(&mut vec![0; length])?;
    let now = Instant::now();
    stream.write_all(answer.as_bytes())?;
    Ok(now)
}
