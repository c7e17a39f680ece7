//! The floor: hyper alone on a Unix socket, answering the same bytes with the same headers and knowing nobody.

use crate::Outcome;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixListener;

/// The argument that makes this program the floor.
pub(crate) const PART: &str = "--part-floor";

/// What the floor answers, by the request's path.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Plan {
    pub(crate) socket: PathBuf,
    pub(crate) answers: Vec<Canned>,
}

/// An answer of the agent's to be given again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Canned {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

struct Answer {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

pub(crate) fn main(plan: &str) -> Outcome<()> {
    let plan: Plan = serde_json::from_slice(&std::fs::read(plan)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(plan))
}

async fn serve(plan: Plan) -> Outcome<()> {
    let answers: Arc<Vec<Answer>> = Arc::new(
        plan.answers
            .iter()
            .map(Answer::of)
            .collect::<Outcome<_>>()?,
    );
    let listener = UnixListener::bind(&plan.socket)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let answers = answers.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answers
                .iter()
                .find(|answer| answer.path == request.uri().path());
            let mut response = Response::new(Full::new(
                answer.map(|a| a.body.clone()).unwrap_or_default(),
            ));
            for (name, value) in answer.iter().flat_map(|answer| &answer.headers) {
                response.headers_mut().insert(name, value.clone());
            }
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl Answer {
    fn of(canned: &Canned) -> Outcome<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &canned.headers {
            // hyper writes these itself.
            if !matches!(
                name.to_ascii_lowercase().as_str(),
                "date" | "content-length" | "connection"
            ) {
                headers.insert(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
            }
        }
        Ok(Self {
            path: canned.path.clone(),
            headers,
            body: canned.body.clone().into(),
        })
    }
}
