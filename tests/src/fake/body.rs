//! Bodies that are read whole, and bodies that are sent whole or declare their length and break off half-way.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// More bytes than any request to a cloud has.
const MAX_BODY: usize = 128 * 1024;

/// A body that is sent whole, or that declares its length and breaks off half-way.
#[derive(Debug)]
pub(crate) struct ReplyBody {
    left: Option<Bytes>,
    promised: u64,
    cut: bool,
    /// Whether hyper has had time to send what there is, before the cut.
    flushed: bool,
}

/// The connection ends here on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrokenOff;

/// A request with all of its body.
pub(crate) async fn whole(request: Request<Incoming>) -> Result<(Parts, Bytes), BrokenOff> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await;
    Ok((parts, body.map_err(|_| BrokenOff)?.to_bytes()))
}

impl ReplyBody {
    /// The whole of `body`, or its first half with the length of the whole.
    pub(crate) fn new(body: Bytes, cut: bool) -> Self {
        let promised = body.len() as u64;
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
        self.left.is_none() && !self.cut
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut on purpose")
    }
}

impl std::error::Error for BrokenOff {}
