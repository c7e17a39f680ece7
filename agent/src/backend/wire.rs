//! The wire to the clouds: one HTTP client for all of them, under their SDKs or without one.
//!
//! It knows no credentials: they come with each request. Calls are HTTP/1.1, so that a connection has one at a time and
//! no call waits for another. Reads share connections one after the other, so each checks that the answer is to its
//! own question; exchanges share none ([`Wire::unshared`]). Redirects are not followed, so that a token goes where it
//! was sent and nowhere else. An answer is read whole, within limits of time and size, into memory that is overwritten
//! when it is dropped.

mod names;
mod roots;

pub(crate) use names::LOOKUPS;
pub(crate) use roots::Roots;

use super::HANGS;
use names::Names;
use parking_lot::Mutex;
use reqwest::{Client, ClientBuilder, redirect};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// How long a connection may take to open.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an idle connection is kept, and how many of them to one host. What lies between may forget a connection and
/// tell nobody, and the longer one is idle, the likelier that is.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_CONNECTIONS: usize = 16;

/// How many suspect hosts are remembered, the latest.
const SUSPECTS: usize = 64;

/// An HTTP client. What it consists of is made when it is first used.
#[derive(Clone)]
pub(super) struct Wire {
    inner: Arc<Inner>,
    /// Whether calls may go over connections on which others went before.
    shares: bool,
}

struct Inner {
    names: Names,
    /// Those that were given, or else the machine's, read for the first call.
    roots: OnceLock<Roots>,
    /// Whether proxies are used, as the environment says.
    by_proxy: bool,
    /// Keeps connections.
    pooled: OnceLock<Client>,
    /// Opens a connection for each call.
    unpooled: OnceLock<Client>,
    /// The hosts whose open connections may be dead, and since when.
    suspects: Mutex<Vec<(Box<str>, Instant)>>,
}

/// An answer, read whole.
pub(super) type Answer = http::Response<Zeroizing<Vec<u8>>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The connection could not be opened, broke, or was too slow.
    #[error(transparent)]
    Lost(#[from] reqwest::Error),
    /// It has more bytes than this.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// A call under way.
struct Call<'a> {
    wire: &'a Inner,
    host: Box<str>,
    began: Instant,
    /// How long it takes at least if it hangs.
    hangs: Duration,
    /// Whether it has an answer, or will get none.
    is_over: bool,
}

// === impl Wire ===

impl Wire {
    /// Returns a client that trusts these roots, and uses the environment's proxies.
    pub(super) fn new(roots: Roots) -> Self {
        Self::with(OnceLock::from(roots), true)
    }

    /// Returns a client that trusts what the machine trusts, and uses the environment's proxies: for a short process,
    /// which may have nothing to call.
    pub(super) fn of_a_process() -> Self {
        Self::with(OnceLock::new(), true)
    }

    /// Returns a client for services of this machine itself, such as its metadata service: through no proxy.
    pub(super) fn to_this_machine() -> Self {
        Self::with(OnceLock::new(), false)
    }

    fn with(roots: OnceLock<Roots>, by_proxy: bool) -> Self {
        let inner = Inner {
            names: Names::of_the_machine(),
            roots,
            by_proxy,
            pooled: OnceLock::new(),
            unpooled: OnceLock::new(),
            suspects: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
            shares: true,
        }
    }

    /// Returns the same client, whose calls go over a connection each. On one that calls share, a second answer to one
    /// of them, as from a proxy that has lost count, is taken for that to the next. This is for exchanges, since most
    /// answers do not say whose token they hold, and since a pod makes about one an hour.
    pub(super) fn unshared(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shares: false,
        }
    }

    /// Sends a request, and returns the answer if it comes within `time` and has at most `size` bytes.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub(super) async fn ask(
        &self,
        mut request: reqwest::Request,
        time: Duration,
        size: usize,
    ) -> Result<Answer, WireError> {
        *request.timeout_mut() = Some(time);
        let host = request.url().host_str().unwrap_or_default();
        let shares = self.shares && !self.inner.is_suspect(host);
        let client = self.inner.client(shares)?;
        let mut call = Call {
            wire: &self.inner,
            host: host.into(),
            began: Instant::now(),
            // Half of the time: whoever waits for it may have begun to count before.
            hangs: HANGS.min(time / 2),
            is_over: false,
        };
        let answer = async {
            let mut response = client.execute(request).await?;
            let body = whole(&mut response, size).await?;
            let (head, _) = http::Response::from(response).into_parts();
            Ok(http::Response::from_parts(head, body))
        };
        let answer = answer.await;
        call.is_over = true;
        // Where no connection can be opened, those that are open may well be alive.
        if matches!(&answer, Err(WireError::Lost(error)) if !error.is_connect()) {
            self.inner.suspect(&call.host);
        }
        answer
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire(..)")
    }
}

// === impl Inner ===

impl Inner {
    /// Returns the client that keeps connections, or the one that does not.
    fn client(&self, keeps: bool) -> reqwest::Result<&Client> {
        let (client, idle) = if keeps {
            (&self.pooled, IDLE_CONNECTIONS)
        } else {
            (&self.unpooled, 0)
        };
        if let Some(made) = client.get() {
            return Ok(made);
        }
        let made = self.builder().pool_max_idle_per_host(idle).build()?;
        Ok(client.get_or_init(|| made))
    }

    fn builder(&self) -> ClientBuilder {
        let builder = Client::builder()
            .http1_only()
            .tls_backend_preconfigured(self.roots.get_or_init(Roots::load).tls())
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .dns_resolver(self.names.clone());
        if self.by_proxy {
            builder
        } else {
            builder.no_proxy()
        }
    }

    /// Whether a call to `host` was in vain just now. Its other connections may be dead too, and calls on them in vain,
    /// the second try of that one first: until none of them can be left, each call opens its own.
    fn is_suspect(&self, host: &str) -> bool {
        let mut suspects = self.suspects.lock();
        suspects.retain(|(_, since)| since.elapsed() <= IDLE_TIMEOUT);
        suspects.iter().any(|(other, _)| **other == *host)
    }

    fn suspect(&self, host: &str) {
        let mut suspects = self.suspects.lock();
        suspects.retain(|(other, _)| **other != *host);
        if suspects.len() >= SUSPECTS {
            suspects.remove(0);
        }
        suspects.push((host.into(), Instant::now()));
    }
}

// === impl Call ===

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.began.elapsed() >= self.hangs {
            self.wire.suspect(&self.host);
        }
    }
}

/// Returns the whole body of `answer`, if it has at most `limit` bytes.
async fn whole(
    answer: &mut reqwest::Response,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, WireError> {
    let expected = answer.content_length().unwrap_or_default();
    let expected = usize::try_from(expected).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(WireError::TooLong(limit));
    }
    let mut body = Zeroizing::new(Vec::with_capacity(expected));
    while let Some(chunk) = answer.chunk().await? {
        let length = body.len() + chunk.len();
        if length > limit {
            return Err(WireError::TooLong(limit));
        }
        if body.capacity() < length {
            // A vector that grows by itself leaves a copy of its content behind.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * length));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
