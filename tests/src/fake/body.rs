//! Bodies that are read whole, and bodies that are sent whole, break off half-way or never end.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// More bytes than any request to a cloud has.
const MAX_BODY: usize = 128 * 1024;

/// How an answer begins to repeat a request.
pub const ECHOED: &str = "this was sent:";

/// What an endless body is made of: blanks, which JSON and XML ignore.
static BLANKS: [u8; 64 << 10] = [b' '; 64 << 10];

/// A body that is sent whole, or that declares its length and breaks off half-way, or that never ends.
#[derive(Debug)]
pub struct ReplyBody {
    left: Option<Bytes>,
    /// Its length; an endless body has none.
    promised: Option<u64>,
    cut: bool,
    /// Whether hyper has had time to send what there is, before the cut.
    flushed: bool,
}

/// The connection ends here on purpose.
#[derive(Clone, Copy, Debug)]
pub struct BrokenOff;

/// A request with all of its body.
pub(crate) async fn whole(request: Request<Incoming>) -> Result<(Parts, Bytes), BrokenOff> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await;
    Ok((parts, body.map_err(|_| BrokenOff)?.to_bytes()))
}

/// All of a request in one line, which begins with [`ECHOED`].
pub(crate) fn echo(parts: &Parts, body: &[u8]) -> String {
    let mut told = ECHOED.to_owned();
    for (name, value) in &parts.headers {
        told += &format!(" {name}:{}", String::from_utf8_lossy(value.as_bytes()));
    }
    told + " " + &String::from_utf8_lossy(body)
}

impl ReplyBody {
    /// The whole of `body`, or its first half with the length of the whole.
    pub(crate) fn new(body: Bytes, cut: bool) -> Self {
        let promised = Some(body.len() as u64);
        let left = if cut {
            body.slice(..body.len() / 2)
        } else {
            body
        };
        Self {
            left: Some(left),
            promised,
            cut,
            flushed: false,
        }
    }

    /// The same, and no end after it.
    pub(crate) fn endless(self) -> Self {
        Self {
            promised: None,
            ..self
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        Poll::Ready(match self.left.take() {
            Some(bytes) if !bytes.is_empty() => Some(Ok(Frame::data(bytes))),
            _ if self.promised.is_none() => Some(Ok(Frame::data(Bytes::from_static(&BLANKS)))),
            _ if self.cut && !self.flushed => {
                self.flushed = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ if self.cut => Some(Err(BrokenOff)),
            _ => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_none() && !self.cut && self.promised.is_some()
    }

    fn size_hint(&self) -> SizeHint {
        self.promised
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut on purpose")
    }
}

impl std::error::Error for BrokenOff {}
