//! Many names in one request: each goes through the pipeline by itself and has its own line.

use super::Handling;
use crate::attest::Workload;
use crate::error::RequestError;
use crate::quota::Room;
use crate::request::{Route, SecretAsk};
use crate::response::{self, Answer};
use crate::secret::SecretName;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use http_body_util::combinators::Fuse;
use hyper::Method;
use hyper::body::Incoming;
use latchkey_client::protocol::{BATCH_BODY, BATCH_NAMES, BatchRequest, Code};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::yield_now;
use tokio::time::Instant;

/// How many names of a batch are read at once.
const BATCH_WIDTH: usize = 8;

/// The limit for the values of one batch together, as encoded in the answer, in bytes.
const BATCH_VALUES: usize = 4 * 1024 * 1024;

/// How much of an invalid name its line shows, in bytes: escaped it may be six times as long, and as it causes no call
/// to a vault, it is cheap to send.
const IMPOSSIBLE_NAME: usize = 64;

/// The message to a caller that asked for more than could be read in time.
const FEWER: &str = "the request's deadline passed; ask for fewer names at once";

impl Handling {
    pub(super) async fn batch(
        &self,
        body: &mut Fuse<Incoming>,
        backend: Option<&str>,
        fresh: bool,
    ) -> Result<Answer, RequestError> {
        let attest = self.connection.workload(self.began);
        let workload = &match self.in_time(FEWER, attest).await {
            Ok(workload) => workload,
            Err(error) => return self.refused_whole(None, error).await,
        };
        let admitted = async {
            let permit = workload.pod().quota.request()?;
            let names = self.in_time(FEWER, self.batch_names(body)).await?;
            workload.pod().quota.batch(names.len())?;
            Ok((permit, names))
        };
        let (_permit, names) = match admitted.await {
            Ok(admitted) => admitted,
            Err(error) => return self.refused_whole(Some(workload), error).await,
        };
        // Else each name would be refused for it.
        if let Err(error) = self.services.backend(backend) {
            self.line_of_all(Some(workload), &error).await?;
            return Err(error);
        }
        let size = &AtomicUsize::new(0);
        let mut reads = stream::iter(names)
            .map(|name| async move {
                let ask = self.batch_ask(&name, backend, fresh);
                let outcome = self.batched(workload, &name, &ask, size).await;
                (name, ask, outcome)
            })
            .buffered(BATCH_WIDTH);
        let (mut bodies, mut rooms) = (Vec::new(), Vec::new());
        let (mut errors, mut codes) = (Vec::new(), HashSet::new());
        while let Some((name, ask, outcome)) = reads.next().await {
            // Gives other tasks a turn, however long the batch is.
            if (bodies.len() + errors.len()) % BATCH_WIDTH == BATCH_WIDTH - 1 {
                yield_now().await;
            }
            match outcome {
                Ok((body, room)) => {
                    bodies.push(body);
                    rooms.push(room);
                }
                Err(error) => {
                    // Nothing else says why: the batch itself is answered.
                    if codes.insert(error.code) {
                        let secret = Some(recorded(&name, &ask));
                        self.log(&Method::POST, Route::Batch, secret, &error);
                    }
                    let refusal = response::batch_error(&name, &error);
                    // It may be long; the one that says that there is no room is short.
                    errors.push(match workload.pod().quota.answer(refusal.len() as u64) {
                        Ok(room) => {
                            rooms.push(room);
                            refusal
                        }
                        Err(busy) => response::batch_error(&name, &busy),
                    });
                }
            }
        }
        // The batch as a whole counts as a success, so its failures are counted here.
        for code in codes {
            self.services.metrics.batch_failed(code);
        }
        let answer = response::json_bytes(response::batch(&bodies, &errors), self.id.as_str());
        Ok(response::held(answer, rooms))
    }

    /// Ends a batch that is refused before its names are known.
    async fn refused_whole(
        &self,
        workload: Option<&Workload>,
        error: RequestError,
    ) -> Result<Answer, RequestError> {
        // An invalid batch asks for no secret, so it gets no line.
        if error.code != Code::InvalidRequest {
            self.line_of_all(workload, &error).await?;
        }
        Err(error)
    }

    /// Writes the one line that stands for all names of a batch.
    async fn line_of_all(
        &self,
        workload: Option<&Workload>,
        error: &RequestError,
    ) -> Result<(), RequestError> {
        let mut record = self.record("").await?;
        record.workload = workload.cloned();
        record.close(Some(error))
    }

    /// Returns what is asked for with one name of a batch.
    fn batch_ask(
        &self,
        name: &str,
        backend: Option<&str>,
        fresh: bool,
    ) -> Result<SecretAsk, RequestError> {
        let name = SecretName::parse(name).map_err(|e| RequestError::invalid(e.to_string()))?;
        let mut ask = SecretAsk {
            backend: backend.map(str::to_owned),
            fresh,
            ..SecretAsk::plain(name)
        };
        self.services.fold(&mut ask);
        Ok(ask)
    }

    /// Reads one name of a batch and writes its line. `size` counts the values of the whole batch so far. A value takes
    /// room among the pod's unread answers.
    async fn batched(
        &self,
        workload: &Workload,
        name: &str,
        ask: &Result<SecretAsk, RequestError>,
        size: &AtomicUsize,
    ) -> Result<(Bytes, Room), RequestError> {
        let quota = &workload.pod().quota;
        let began = Instant::now();
        // Before the record, so that a read that waits for its permit holds no place in the trail.
        let permit = self.in_time(FEWER, quota.batched()).await;
        let services = &self.services;
        let mut record = self.record(recorded(name, ask)).await?;
        record.began = began;
        record.workload = Some(workload.clone());
        let work = async {
            let _permit = permit?;
            let ask = ask.as_ref().map_err(Clone::clone)?;
            let (read, backend) = services.read(self.id, workload, ask, &mut record).await?;
            let backend = services.backends.name(backend);
            let body = response::secret_json(&read.secret, ask.name.as_str(), backend);
            if size.fetch_add(body.len(), Ordering::Relaxed) + body.len() > BATCH_VALUES {
                return Err(RequestError::new(
                    Code::TooLarge,
                    "the values of this batch are too large together: ask for this one alone",
                ));
            }
            // Before the line is written, because that says whether the value was given out.
            let room = quota.answer(u64::try_from(body.len()).unwrap_or(u64::MAX))?;
            Ok((body, room))
        };
        let outcome = self.in_time(FEWER, work).await;
        record.close(outcome.as_ref().err())?;
        outcome
    }

    /// Reads the body of a batch. Each part is copied, because even a part of a single byte keeps alive the buffer of
    /// at least 8 KiB that it was read into.
    async fn batch_body(&self, body: &mut Fuse<Incoming>) -> Result<Vec<u8>, RequestError> {
        let mut whole = Vec::new();
        while let Some(part) = body.frame().await {
            let Ok(part) = part else {
                // It is unknown where the next request would begin.
                self.connection.close_after_answer();
                return Err(RequestError::invalid(
                    "the body did not arrive whole, or came in chunks that are too small",
                ));
            };
            let Ok(data) = part.into_data() else {
                continue;
            };
            if whole.len() + data.len() > BATCH_BODY {
                return Err(RequestError::new(
                    Code::TooLarge,
                    format!("the body is longer than {BATCH_BODY} bytes"),
                ));
            }
            whole.extend_from_slice(&data);
            self.connection.took_of_body(data.len());
        }
        Ok(whole)
    }

    /// Reads the names of a batch, and returns each once, in the order asked for.
    async fn batch_names(&self, body: &mut Fuse<Incoming>) -> Result<Vec<String>, RequestError> {
        let body = self.batch_body(body).await?;
        // serde would also accept an array of the object's values.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(RequestError::invalid("the body is not {\"names\": [...]}"));
        }
        let request: BatchRequest = serde_json::from_slice(&body).map_err(|error| {
            RequestError::invalid(format!("the body is not {{\"names\": [...]}}: {error}"))
        })?;
        let mut seen = HashSet::new();
        let mut names = request.names;
        if names.is_empty() || names.len() > BATCH_NAMES {
            return Err(RequestError::invalid(format!(
                "a batch has 1 to {BATCH_NAMES} names"
            )));
        }
        // Each name appears in the trail and in the answer, even if it is otherwise invalid.
        let is_long = |name: &String| name.len() > SecretName::MAX_LENGTH;
        if let Some(index) = names.iter().position(is_long) {
            return Err(RequestError::invalid(format!(
                "names[{index}] has more than {} bytes: no vault has such a secret",
                SecretName::MAX_LENGTH
            )));
        }
        names.retain(|name| seen.insert(name.clone()));
        Ok(names)
    }
}

/// The name as it is recorded: of an invalid one only a part.
fn recorded<'a>(name: &'a str, ask: &'a Result<SecretAsk, RequestError>) -> &'a str {
    match ask {
        Ok(ask) => ask.name.as_str(),
        Err(_) => &name[..name.floor_char_boundary(IMPOSSIBLE_NAME)],
    }
}
