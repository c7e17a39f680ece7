//! The audit trail: one JSON line on stderr for each secret requested. No secret leaves before its line is queued.
//!
//! A request reserves a place in a bounded queue before it reads, and fills it before it answers; a separate thread
//! writes. While the queue is full, requests wait, and at their deadline fail with 503. Once lines can no longer be
//! written, no more secrets are read.

mod line;

pub(crate) use line::Line;

use crate::error::RequestError;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Permit};
use tokio::time::{Instant, timeout_at};

/// How many lines one write to stderr may hold.
const BATCH: usize = 512;

/// How many bytes of buffer the writer keeps.
const TEXT_KEPT: usize = 1 << 20;

/// How long the writer lets lines gather. Waking it for every line would cost more than the rest of a warm read.
const GATHER: Duration = Duration::from_millis(4);

/// Each line whose number is a multiple of this wakes the writer early. That many typical lines fit into a pipe (64
/// KiB), and writing so few occupies the processor only briefly.
const GATHERED: u64 = 64;

/// The sending end of the queue.
#[derive(Debug)]
pub(crate) struct Audit {
    lines: mpsc::Sender<Vec<u8>>,
    seq: AtomicU64,
    backlog: Backlog,
    boot_id: Box<str>,
    /// Unparked when enough lines have gathered.
    writer: Thread,
}

/// A place in the queue: the right to answer with a secret.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    place: Permit<'a, Vec<u8>>,
    audit: &'a Audit,
}

/// The thread that writes; it ends once the [`Audit`] is dropped and the queue is empty.
#[derive(Debug)]
pub(crate) struct Writer {
    thread: JoinHandle<()>,
    backlog: Backlog,
}

/// How many lines are in the queue, or have been taken from it but not written yet. A place that is only reserved is no
/// line: its read may wait for a slow cloud.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backlog(Arc<AtomicUsize>);

// === impl Audit ===

impl Audit {
    /// An empty trail whose queue holds `queue` lines, reserved places included, and the thread that writes it to `out`.
    ///
    /// # Errors
    ///
    /// If no thread can be started.
    pub(crate) fn start(
        queue: usize,
        out: impl Write + Send + 'static,
    ) -> std::io::Result<(Self, Writer)> {
        let (sender, lines) = mpsc::channel(queue);
        let backlog = Backlog::default();
        let writers = backlog.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(lines, out, &writers))?;
        let boot_id = uuid::Uuid::new_v4().to_string().into();
        Ok((
            Self {
                lines: sender,
                seq: AtomicU64::default(),
                backlog: backlog.clone(),
                boot_id,
                writer: thread.thread().clone(),
            },
            Writer { thread, backlog },
        ))
    }

    /// Waits for a place in the queue, until `deadline` at most.
    ///
    /// # Errors
    ///
    /// `unavailable` if the trail can no longer be written, or not fast enough.
    pub(crate) async fn reserve(&self, deadline: Instant) -> Result<Reservation<'_>, RequestError> {
        let place = match self.lines.try_reserve() {
            Err(TrySendError::Full(())) => {
                self.writer.unpark();
                timeout_at(deadline, self.lines.reserve())
                    .await
                    .map_err(|_| {
                        RequestError::unavailable(
                            "the agent cannot write its audit trail fast enough; try again",
                        )
                    })?
                    .ok()
            }
            place => place.ok(),
        };
        let place = place.ok_or_else(broken)?;
        Ok(Reservation { place, audit: self })
    }

    /// How many lines wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.backlog.count()
    }

    /// Whether lines can no longer be written.
    pub(crate) fn is_broken(&self) -> bool {
        self.lines.is_closed()
    }

    /// Distinguishes this run of the agent from every other.
    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }
}

// === impl Reservation ===

impl Reservation<'_> {
    /// Puts the line into the queue.
    ///
    /// # Errors
    ///
    /// `internal` if it cannot be written as JSON, `unavailable` if the writer has given up meanwhile.
    pub(crate) fn fill(self, line: Line<'_>) -> Result<(), RequestError> {
        let now = crate::time::now_rfc3339();
        let seq = self.audit.seq.fetch_add(1, Ordering::Relaxed);
        let line = Line {
            time: &now,
            target: "audit",
            boot_id: &self.audit.boot_id,
            seq,
            ..line
        };
        let mut text = Vec::with_capacity(768);
        line.write(&mut text)
            .map_err(|e| RequestError::internal(&e))?;
        text.push(b'\n');
        // Before it can be written.
        self.audit.backlog.0.fetch_add(1, Ordering::Relaxed);
        self.place.send(text);
        if seq.is_multiple_of(GATHERED) {
            self.audit.writer.unpark();
        }
        // Checked afterwards, so that no line counts as queued that the writer has left behind.
        if self.audit.is_broken() {
            Err(broken())
        } else {
            Ok(())
        }
    }
}

fn broken() -> RequestError {
    RequestError::unavailable(
        "the agent cannot write its audit trail, so it answers with no secret",
    )
}

// === impl Writer ===

impl Writer {
    /// Waits until everything is written. The [`Audit`] must have been dropped.
    pub(crate) fn finish(self) {
        let _ = self.thread.join();
    }

    /// The backlog, to check while the writer finishes.
    pub(crate) fn backlog(&self) -> Backlog {
        self.backlog.clone()
    }
}

// === impl Backlog ===

impl Backlog {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether there is one now.
    pub(crate) fn is_there(&self) -> bool {
        self.count() > 0
    }
}

/// Writes until the queue is closed and empty, or a write fails: that drops the receiver, and then nobody can reserve a
/// place any more.
fn write(mut lines: mpsc::Receiver<Vec<u8>>, mut out: impl Write, backlog: &Backlog) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut text = Vec::new();
    while lines.blocking_recv_many(&mut batch, BATCH) > 0 {
        if batch.len() < BATCH {
            std::thread::park_timeout(GATHER);
            let more = std::iter::from_fn(|| lines.try_recv().ok());
            batch.extend(more.take(BATCH - batch.len()));
        }
        let lines_taken = batch.len();
        batch
            .drain(..)
            .for_each(|line| text.extend_from_slice(&line));
        if let Err(error) = out.write_all(&text).and_then(|()| out.flush()) {
            drop(lines);
            tracing::error!(%error, "the audit trail cannot be written: no more secrets are read");
            return;
        }
        backlog.0.fetch_sub(lines_taken, Ordering::Relaxed);
        text.clear();
        text.shrink_to(TEXT_KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("nobody panics with it")
                .extend_from_slice(text);
            Ok(text.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn every_line_is_written_and_numbered_without_a_gap() {
        let page = Page::default();
        let (audit, writer) = Audit::start(4, page.clone()).expect("a thread");
        for _ in 0..100 {
            let place = audit.reserve(soon()).await.expect("a place");
            place
                .fill(Line {
                    secret: "prod/db",
                    ..Line::default()
                })
                .expect("a line");
        }
        drop(audit);
        tokio::task::spawn_blocking(|| writer.finish())
            .await
            .expect("it ends");
        let text = String::from_utf8(page.0.lock().expect("written").clone()).expect("text");
        let numbers: Vec<u64> = text
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                assert_eq!(line["target"], "audit");
                line["seq"].as_u64().expect("a number")
            })
            .collect();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_makes_requests_wait() {
        let (audit, _writer) = Audit::start(1, Page::default()).expect("a thread");
        let held = audit.reserve(soon()).await.expect("a place");
        let next = audit.reserve(soon()).await;
        let error = next.expect_err("there was a second place in a queue of one");
        assert_eq!(error.code, latchkey_client::protocol::Code::Unavailable);
        drop(held);
        audit
            .reserve(soon())
            .await
            .expect("the place is free again");
    }

    #[tokio::test]
    async fn only_lines_that_are_not_written_yet_wait() {
        let (audit, writer) = Audit::start(8, Page::default()).expect("a thread");
        let backlog = writer.backlog();
        let held = audit.reserve(soon()).await.expect("a place");
        assert_eq!(audit.waiting(), 0);
        held.fill(Line::default()).expect("a line");
        drop(audit);
        tokio::task::spawn_blocking(|| writer.finish())
            .await
            .expect("it ends");
        assert!(!backlog.is_there());

        let (audit, writer) = Audit::start(8, Broken).expect("a thread");
        let place = audit.reserve(soon()).await.expect("a place");
        // The writer may already have found that it cannot write.
        let _ = place.fill(Line::default());
        tokio::task::spawn_blocking(|| writer.finish())
            .await
            .expect("it ends");
        assert_eq!(audit.waiting(), 1);
    }

    #[tokio::test]
    async fn a_trail_that_cannot_be_written_ends_all_reading() {
        let (audit, writer) = Audit::start(4, Broken).expect("a thread");
        let place = audit.reserve(soon()).await.expect("a place");
        let taken_before = audit.reserve(soon()).await.expect("a place");
        // The writer may already have found that it cannot write.
        let _ = place.fill(Line::default());
        tokio::task::spawn_blocking(|| writer.finish())
            .await
            .expect("it ends");
        let refused = [
            taken_before.fill(Line::default()).err(),
            audit.reserve(soon()).await.err(),
        ];
        for refused in refused {
            let code = refused.expect("no line is taken").code;
            assert_eq!(code, latchkey_client::protocol::Code::Unavailable);
        }
    }
}
