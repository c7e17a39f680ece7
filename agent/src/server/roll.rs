//! The roll of open connections, and what ends them from outside.
//!
//! A connection itself waits only for its bytes. One task looks after them all: it learns when peers exit, pods are
//! deleted or the agent leaves, and each second it checks for timeouts. The kernel is asked to report a peer's exit
//! only once its request takes time, or after the first second: many connections end before either.

use super::connection::Connection;
use super::times::Verdict;
use crate::attest::pods::Pods;
use crate::handover::Phase;
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How many exits are read at once.
const EXITS: usize = 64;

/// How often timeouts are checked.
const TICK: Duration = Duration::from_secs(1);

/// The open connections.
#[derive(Debug)]
pub(crate) struct Roll {
    /// The peers' pidfds (epoll(7)). The runtime's own reactor would cost each connection several more system calls.
    exits: AsyncFd<OwnedFd>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    /// Never reused, so that an exit reported late cannot end another connection.
    next: u64,
}

/// A connection's place on the roll, until it is dropped.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    roll: &'a Roll,
    number: u64,
    connection: &'a Connection,
}

/// A look at all connections.
struct Look {
    at: Instant,
    /// Whether it came much later than it should have.
    was_late: bool,
}

// === impl Roll ===

impl Roll {
    /// An empty roll.
    ///
    /// # Errors
    ///
    /// If no descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            exits: readable(epoll::create(epoll::CreateFlags::CLOEXEC)?)?,
            open: Mutex::default(),
        })
    }

    /// Enters a connection, which from now on learns what happens; but of its peer's exit only from the next second on,
    /// or once it is [watched](Entry::watch).
    pub(super) fn enter<'a>(&'a self, connection: &'a Arc<Connection>) -> Entry<'a> {
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, connection.clone());
        Entry {
            roll: self,
            number,
            connection,
        }
    }

    /// Makes the connection end when its peer exits, or now if it has exited.
    fn watch(&self, number: u64, connection: &Connection) {
        let Some(pidfd) = connection.begin_watch() else {
            return;
        };
        // Reported once, even for an exit in the past. Closing the pidfd, which has no duplicate, removes it again.
        let watched = epoll::add(
            self.exits.get_ref(),
            pidfd,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN | epoll::EventFlags::ONESHOT,
        );
        if let Err(error) = watched {
            tracing::warn!(pid = connection.pid(), %error, "a connection ends: the kernel does not tell when its peer exits");
            connection.end();
        }
    }

    /// Tells the connections what happens, forever.
    ///
    /// # Errors
    ///
    /// If the kernel no longer reports exits.
    pub(crate) async fn look_after(
        &self,
        pods: Option<&Pods>,
        mut phase: watch::Receiver<Phase>,
    ) -> io::Result<()> {
        let mut ticks = interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let never = Notify::new();
        let change = || pods.map_or_else(|| never.notified(), Pods::changed);
        let mut changed = std::pin::pin!(change());
        let mut leaving = false;
        let mut last = Look {
            at: Instant::now(),
            was_late: false,
        };
        loop {
            tokio::select! {
                () = &mut changed => {
                    // Before the look, so that no change is missed in between.
                    changed.set(change());
                    last = self.look(leaving, &last);
                }
                _ = ticks.tick() => last = self.look(leaving, &last),
                told = self.exits.readable() => {
                    told?.clear_ready();
                    self.end_exited()?;
                }
                Ok(()) = phase.changed() => {
                    leaving = *phase.borrow_and_update() == Phase::Draining;
                    for connection in self.open.lock().connections.values() {
                        connection.close_after_answer();
                        // A request that has begun to arrive is read to its end.
                        if leaving && connection.times.is_idle() {
                            connection.stop_reading();
                        }
                    }
                }
            }
        }
    }

    /// Ends the connections that have sent no whole head: nobody waits for an answer there.
    pub(crate) fn stop_reading(&self) {
        for connection in self.open.lock().connections.values() {
            if !connection.times.is_answering() {
                connection.stop_reading();
            }
        }
    }

    /// Looks at all connections, for the first time since the `last` look. If that is long ago, the agent itself was
    /// stalled, as in a frozen cgroup: what came meanwhile is read before anybody is late, unless that is always so.
    fn look(&self, leaving: bool, last: &Look) -> Look {
        let now = Instant::now();
        let was_late = !last.was_late && now - last.at > 2 * TICK;
        for (number, connection) in &self.open.lock().connections {
            match connection.look(now, leaving, was_late) {
                Verdict::End => connection.end(),
                Verdict::GoOn => self.watch(*number, connection),
                Verdict::StopReading => connection.stop_reading(),
            }
        }
        Look { at: now, was_late }
    }

    /// Ends the connections whose peers have exited.
    fn end_exited(&self) -> io::Result<()> {
        const AT_ONCE: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut exits = Vec::with_capacity(EXITS);
        loop {
            exits.clear();
            epoll::wait(
                self.exits.get_ref(),
                spare_capacity(&mut exits),
                Some(&AT_ONCE),
            )?;
            let open = self.open.lock();
            for exit in &exits {
                if let Some(connection) = open.connections.get(&{ exit.data }.u64()) {
                    connection.end();
                }
            }
            if exits.len() < EXITS {
                return Ok(());
            }
        }
    }
}

// === impl Entry ===

impl Entry<'_> {
    /// Makes the connection end as soon as its peer exits.
    pub(super) fn watch(&self) {
        self.roll.watch(self.number, self.connection);
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.roll.open.lock().connections.remove(&self.number);
    }
}

#[expect(
    deprecated,
    reason = "its successor is an unsafe fn; what that one demands holds for an owned descriptor"
)]
fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}
