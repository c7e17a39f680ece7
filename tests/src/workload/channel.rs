//! The test's end of the line to a pod: orders out, outcomes back, many at a time.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::PATIENCE;

use super::protocol::{Failure, Line, Order, Outcome, Task};

type Answer = Result<Outcome, Failure>;

#[derive(Debug)]
pub(super) struct Channel {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Mutex<Waiting>>,
    reader: AbortHandle,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// Whether the pod has gone.
    over: bool,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
}

/// A line whose pod has not said yet that it is ready.
#[derive(Debug)]
pub(super) struct Opening {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Opening {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            lines: BufReader::new(reader).lines(),
            writer,
        }
    }

    /// The pod's next message.
    pub(super) async fn next(&mut self) -> io::Result<Line> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await??;
        let line = line.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the pod ended before it was ready (see its standard error)",
            )
        })?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Tells the pod to go on.
    pub(super) async fn go_on(&mut self) -> io::Result<()> {
        self.writer.write_all(b"\n").await
    }

    pub(super) fn ready(self) -> Channel {
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let reader = tokio::spawn(listen(self.lines, Arc::clone(&waiting))).abort_handle();
        Channel {
            writer: tokio::sync::Mutex::new(self.writer),
            waiting,
            reader,
        }
    }
}

impl Channel {
    pub(super) async fn ask(&self, task: Task) -> io::Result<Outcome> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.over {
                return Err(gone());
            }
            waiting.next += 1;
            let id = waiting.next;
            waiting.answers.insert(id, sender);
            id
        };
        let mut line = serde_json::to_vec(&Order { id, task })?;
        line.push(b'\n');
        self.writer.lock().await.write_all(&line).await?;
        Ok(answer.await.map_err(|_| gone())??)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn listen(
    mut lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    waiting: Arc<Mutex<Waiting>>,
) {
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(Line::Done { id, result }) = serde_json::from_str(&line) {
            let answer = waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .answers
                .remove(&id);
            // The caller may have stopped waiting.
            let _unheard = answer.map(|answer| answer.send(result));
        }
    }
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.over = true;
    waiting.answers.clear();
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the pod's process is gone")
}
