//! What every fake cloud is made of: a listener, and calls that are logged, go wrong on demand and have a clock.

use std::future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Request, Response};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::faults::Faults;
use super::log::CallLog;
use super::{
    Attempt, Behaviour, BrokenOff, Fault, FaultGuard, Forgotten, Gate, Listener, Port, Reply,
    ReplyBody, Special,
};

/// A fake cloud at one address, until it is dropped: what tests can do to any of them.
#[derive(Debug)]
pub struct Server<C: Attempt, S: Special> {
    listener: Listener,
    calls: Arc<Calls<C, S>>,
    _ended: DropGuard,
}

/// The calls of a cloud: which there were, which go wrong, and what time it is for them.
#[derive(Debug)]
pub(crate) struct Calls<C: Attempt, S: Special> {
    log: CallLog<C>,
    faults: Arc<Faults<C, S>>,
    /// How far the fake's clock is from the machine's, in milliseconds.
    clock_offset: AtomicI64,
}

/// A request that has been read, and that its cloud can answer.
pub(crate) trait Asked<C, S>: Send {
    /// The cloud's answer, if it has words of its own for what goes wrong.
    fn failure(&self, behaviour: &Behaviour<S>) -> Option<Reply>;

    /// The cloud's answer, which may depend on what goes wrong.
    fn answer(&self, call: &mut C, behaviour: Option<&Behaviour<S>>) -> Reply;

    /// Adds what is in every answer of the cloud.
    fn complete(&self, reply: Reply) -> Reply {
        reply
    }
}

/// Where it listens.
impl<C: Attempt, S: Special> Server<C, S> {
    /// Answers what comes to the address with `answer`, over TLS if there is an acceptor.
    pub(crate) fn open<F>(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        calls: Arc<Calls<C, S>>,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = Result<Response<ReplyBody>, BrokenOff>> + Send + 'static,
    {
        let ended = CancellationToken::new();
        Ok(Self {
            listener: Listener::open(Port::take(address)?, tls, ended.clone(), answer)?,
            calls,
            _ended: ended.drop_guard(),
        })
    }

    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Its URL, if it does not speak TLS.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Refuses connections from now on and breaks the open ones.
    pub async fn stop_listening(&self) {
        self.listener.stop().await;
    }

    /// Listens again, at the same port.
    ///
    /// # Errors
    ///
    /// If the port cannot be listened on.
    pub async fn resume_listening(&self) -> io::Result<()> {
        self.listener.resume().await
    }

    /// How many connections were opened so far.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.listener.opened()
    }

    /// Lets something on their way forget the open connections; new ones are accepted.
    pub fn forget_connections(&self, how: Forgotten) {
        self.listener.forget_connections(how);
    }
}

/// The calls, and what goes wrong.
impl<C: Attempt, S: Special> Server<C, S> {
    /// Every call so far, in the order of the answers.
    #[must_use]
    pub fn calls(&self) -> Vec<C> {
        self.calls_where(|_| true)
    }

    /// The calls of one kind.
    #[must_use]
    pub fn calls_of(&self, operation: C::Operation) -> Vec<C> {
        self.calls_where(|call| call.operation() == operation)
    }

    /// The calls that `wanted` accepts.
    #[must_use]
    pub fn calls_where(&self, wanted: impl Fn(&C) -> bool) -> Vec<C> {
        self.calls.log.matching(wanted)
    }

    /// How many calls `wanted` accepts.
    #[must_use]
    pub fn count_calls(&self, wanted: impl Fn(&C) -> bool) -> usize {
        self.calls.log.count(wanted)
    }

    /// How many calls there were of one kind.
    #[must_use]
    pub fn count_of(&self, operation: C::Operation) -> usize {
        self.count_calls(|call| call.operation() == operation)
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        self.calls.log.clear();
    }

    /// Waits until at least `calls` such calls have been answered. Returns whether that was within `patience`.
    pub async fn called(
        &self,
        calls: usize,
        patience: Duration,
        wanted: impl Fn(&C) -> bool,
    ) -> bool {
        let mut total = self.calls.log.total();
        let all = async {
            while self.count_calls(&wanted) < calls {
                // The sender lives as long as `self`.
                let _ = total.changed().await;
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    /// Makes something go wrong until the guard is dropped.
    pub fn fault(&self, fault: Fault<C, S>) -> FaultGuard<C, S> {
        self.calls.faults.add(fault)
    }

    /// Lets every call of one kind wait at a gate; those that come once the guard is dropped do not.
    pub fn hold(&self, operation: C::Operation) -> (Gate, FaultGuard<C, S>) {
        let gate = Gate::new();
        let held = self.fault(Fault::on(operation, Behaviour::Hold(gate.clone())));
        (gate, held)
    }

    /// Sets the fake's clock this far from the machine's, in either direction.
    pub fn set_clock_offset(&self, offset: SignedDuration) {
        let milliseconds = i64::try_from(offset.as_millis()).unwrap_or(i64::MAX);
        self.calls
            .clock_offset
            .store(milliseconds, Ordering::Relaxed);
    }
}

impl<C: Attempt, S: Special> Calls<C, S> {
    /// With `echo`, each call is also written to stdout, one JSON line each.
    pub(crate) fn new(echo: bool) -> Arc<Self> {
        Arc::new(Self {
            log: CallLog::new(echo),
            faults: Arc::default(),
            clock_offset: AtomicI64::new(0),
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        let offset = self.clock_offset.load(Ordering::Relaxed);
        Timestamp::now() + SignedDuration::from_millis(offset)
    }

    /// Answers a call as the cloud does, or goes wrong, and logs it.
    pub(crate) async fn serve(
        self: Arc<Self>,
        mut call: C,
        asked: impl Asked<C, S> + 'static,
    ) -> Result<Response<ReplyBody>, BrokenOff> {
        let behaviour = self.faults.strike(&call);
        if let Some(never @ (Behaviour::Disconnect | Behaviour::Hang)) = &behaviour {
            *call.error() = Some(never.name().to_owned());
            self.log.push(call);
            return match never {
                Behaviour::Hang => future::pending().await,
                _ => Err(BrokenOff),
            };
        }
        let wait = behaviour.clone();
        let answer = move || self.answer(call, &asked, behaviour.as_ref());
        // In tasks of their own: a cloud finishes what it has begun, whether or not the caller still waits.
        let later = match wait {
            Some(Behaviour::Delay(time)) => tokio::spawn(async move {
                tokio::time::sleep(time).await;
                answer()
            }),
            Some(Behaviour::Hold(gate)) => tokio::spawn(async move {
                gate.pass().await;
                answer()
            }),
            _ => return Ok(answer()),
        };
        later.await.map_err(|_| BrokenOff)
    }

    fn answer(
        &self,
        mut call: C,
        asked: &impl Asked<C, S>,
        behaviour: Option<&Behaviour<S>>,
    ) -> Response<ReplyBody> {
        let failure = behaviour.and_then(|behaviour| match behaviour {
            Behaviour::Html(status) => Some(Reply::html(*status)),
            Behaviour::Throttle(Some(seconds)) => {
                let reply = asked.failure(behaviour)?;
                Some(reply.with_header(RETRY_AFTER, seconds))
            }
            _ => asked.failure(behaviour),
        });
        let reply = failure.unwrap_or_else(|| asked.answer(&mut call, behaviour));
        if let Some(behaviour) = behaviour
            && !matches!(behaviour, Behaviour::Delay(_) | Behaviour::Hold(_))
        {
            let error = call.error();
            error.get_or_insert_with(|| behaviour.name().to_owned());
        }
        self.log.push(call);
        asked.complete(reply).into_response(behaviour)
    }
}
