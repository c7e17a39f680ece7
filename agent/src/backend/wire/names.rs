//! Names → addresses, by the machine's own resolver.
//!
//! That blocks a thread, for as long as name servers do not answer, and whoever gives up waiting does not free it. So
//! all who ask for a host share one lookup, and all lookups have a bound: however many names hang, and whoever chose
//! them, threads are left for everything else.

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use tokio::task;

/// How many hosts are looked up at once, each on a thread of its own: more than a node has pods, of which each calls
/// few hosts. A thread that does not run costs nothing.
pub(crate) const LOOKUPS: usize = 128;

/// How many addresses of each family (IPv4, IPv6) one connection is tried at, one after the other. The client divides
/// the time in which a connection must be open ([`CONNECT_TIMEOUT`](super::CONNECT_TIMEOUT)) evenly between them, so if
/// a host has eight, one that is 130 milliseconds away cannot be reached at any. Half of that time is enough for each:
/// where TCP needs more, nothing is left for TLS. Servers of names mostly answer in turn, so the next connection may be
/// tried at others, unless the machine sorts them (getaddrinfo(3), /etc/hosts).
const ADDRESSES: usize = 2;

type Found = Result<Vec<SocketAddr>, Arc<io::Error>>;
type Lookup = Shared<BoxFuture<'static, Found>>;

/// Looks up names.
#[derive(Clone)]
pub(super) struct Names {
    /// Finds a host's addresses, and blocks the thread meanwhile.
    find: Arc<Find>,
    /// The lookups that hold a thread, by host.
    running: Arc<Mutex<HashMap<Box<str>, Lookup>>>,
}

type Find = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// No more names may be looked up now.
#[derive(Debug, thiserror::Error)]
#[error("too many names are being looked up, which no name server answers")]
struct Busy;

// === impl Names ===

impl Names {
    /// By the machine's resolver.
    pub(super) fn of_the_machine() -> Self {
        Self::by(|host| Ok((host, 0).to_socket_addrs()?.collect()))
    }

    fn by(find: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        let running = Arc::default();
        let find = Arc::new(find);
        Self { find, running }
    }

    /// Returns the lookup of `host`, which goes on even if nobody waits for it.
    fn lookup(&self, host: &str) -> Result<Lookup, Busy> {
        let mut running = self.running.lock();
        if let Some(lookup) = running.get(host) {
            return Ok(lookup.clone());
        }
        if running.len() >= LOOKUPS {
            return Err(Busy);
        }
        let (names, asked) = (self.clone(), Box::<str>::from(host));
        let thread = task::spawn_blocking(move || {
            let found = (names.find)(&asked);
            names.running.lock().remove(&asked);
            found
        });
        let found = async {
            let found = thread.await.unwrap_or_else(|died| Err(died.into()));
            found.map_err(Arc::new)
        };
        let lookup = found.boxed().shared();
        running.insert(host.into(), lookup.clone());
        Ok(lookup)
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let lookup = self.lookup(name.as_str());
        async {
            let mut found = lookup?.await?;
            let mut left = [ADDRESSES; 2];
            found.retain(|address| {
                let left = &mut left[usize::from(address.is_ipv6())];
                let is_taken = *left > 0;
                *left = left.saturating_sub(1);
                is_taken
            });
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;
    use tokio::time::timeout;

    const ADDRESS: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// Names of which those with "hang" in them are not found before the sender is dropped, and how many were looked
    /// for.
    fn names() -> (Names, mpsc::Sender<()>, Arc<AtomicUsize>) {
        let (hold, held) = mpsc::channel::<()>();
        let (held, looked) = (Mutex::new(held), Arc::<AtomicUsize>::default());
        let count = looked.clone();
        let names = Names::by(move |host| {
            count.fetch_add(1, Ordering::Relaxed);
            if host.contains("hang") {
                let _ = held.lock().recv();
            }
            if host.contains("none") {
                return Err(io::Error::other("no such name"));
            }
            Ok(vec![ADDRESS])
        });
        (names, hold, looked)
    }

    async fn found(names: &Names, host: &str) -> Result<Vec<SocketAddr>, String> {
        let name = host.parse().expect("a name");
        let found = names.resolve(name).await;
        found
            .map(Iterator::collect)
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_ask_even_after_they_have_left() {
        let (names, hold, looked) = names();
        for _ in 0..300 {
            let asked = timeout(Duration::from_millis(1), found(&names, "hang.test"));
            assert!(asked.await.is_err());
        }
        let waiting = names.lookup("hang.test").expect("it goes on");
        drop(hold);
        assert!(waiting.await.is_ok());
        assert_eq!(looked.load(Ordering::Relaxed), 1);
        // What has ended is asked anew.
        assert_eq!(found(&names, "hang.test").await, Ok(vec![ADDRESS]));
        assert_eq!(looked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn hosts_whose_names_hang_take_no_thread_from_anything_else() {
        let (names, hold, _) = names();
        let hanging: Vec<_> = (0..1000)
            .map(|n| names.lookup(&format!("hang{n}.test")))
            .collect();
        assert_eq!(
            hanging.iter().filter(|lookup| lookup.is_ok()).count(),
            LOOKUPS
        );
        let refused = found(&names, "other.test")
            .await
            .expect_err("no thread is left for it");
        assert!(refused.contains("too many names"), "{refused}");
        drop(hold);
        for lookup in hanging.into_iter().flatten() {
            assert!(lookup.await.is_ok());
        }
        assert_eq!(found(&names, "other.test").await, Ok(vec![ADDRESS]));
    }

    #[tokio::test]
    async fn however_many_addresses_a_host_has_each_is_tried_for_half_of_the_time() {
        let address = |text: &str| format!("{text}:0").parse::<SocketAddr>().expect(text);
        let (v4, v6) = (
            |n| address(&format!("192.0.2.{n}")),
            |n| address(&format!("[2001:db8::{n}]")),
        );
        for (given, tried) in [
            ((1..9).map(v4).collect(), vec![v4(1), v4(2)]),
            (vec![v6(1)], vec![v6(1)]),
            // The first is of the family that is preferred.
            (
                vec![v6(1), v4(1), v6(2), v6(3), v4(2), v4(3)],
                vec![v6(1), v4(1), v6(2), v4(2)],
            ),
        ] {
            let given: Vec<_> = given;
            let names = Names::by(move |_| Ok(given.clone()));
            assert_eq!(found(&names, "many.test").await, Ok(tried));
        }
    }

    #[tokio::test]
    async fn a_name_that_is_not_found_says_why() {
        let (names, ..) = names();
        let error = found(&names, "none.test").await.expect_err("no address");
        assert!(error.contains("no such name"), "{error}");
    }
}
