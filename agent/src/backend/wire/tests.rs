use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

const TIME: Duration = HANGS;

/// A service that answers each request, as long as nothing on the way has forgotten its connection.
struct Service {
    url: String,
    /// How many connections were opened.
    opened: AtomicUsize,
    /// How many of them are forgotten, the first: no answer comes over them.
    forgotten: AtomicUsize,
    /// How many of them break when they are used, the first.
    broken: AtomicUsize,
    /// How many of them fall silent in an answer's body, the first.
    halved: AtomicUsize,
}

impl Service {
    async fn start() -> Arc<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let service = Arc::new(Self {
            url,
            opened: AtomicUsize::new(0),
            forgotten: AtomicUsize::new(0),
            broken: AtomicUsize::new(0),
            halved: AtomicUsize::new(0),
        });
        let accepting = service.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = accepting.opened.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(accepting.clone().serve(stream, number));
            }
        });
        service
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream, number: usize) {
        let mut request = [0; 4096];
        while stream
            .read(&mut request)
            .await
            .is_ok_and(|length| length > 0)
        {
            if number < self.broken.load(Ordering::Relaxed) {
                return;
            }
            if number < self.forgotten.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if number < self.halved.load(Ordering::Relaxed) {
                let _ = stream.write_all(&ANSWER[..ANSWER.len() - 1]).await;
                std::future::pending::<()>().await;
            }
            // Requests that are made together take a connection each.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = stream.write_all(ANSWER).await;
        }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    async fn ask(&self, wire: &Wire) -> Result<Answer, WireError> {
        wire.ask(get(&self.url), TIME, 100).await
    }
}

fn get(url: &str) -> reqwest::Request {
    reqwest::Request::new(reqwest::Method::GET, url.parse().expect("a URL"))
}

#[tokio::test]
async fn a_body_is_read_whole_or_not_at_all() {
    let answer = || reqwest::Response::from(http::Response::new("12345"));
    let read = whole(&mut answer(), 5).await.expect("it fits");
    assert_eq!(&**read, b"12345");
    let error = whole(&mut answer(), 4).await.expect_err("it is longer");
    assert!(matches!(error, WireError::TooLong(4)), "{error}");
}

#[tokio::test]
async fn after_one_call_in_vain_no_dead_connection_is_used() {
    let is_late: fn(&reqwest::Error) -> bool = reqwest::Error::is_timeout;
    let is_broken = |error: &reqwest::Error| !error.is_timeout() && !error.is_connect();
    let forgotten: fn(&Service) -> &AtomicUsize = |service| &service.forgotten;
    for (dead, is_in_vain) in [
        (forgotten, is_late),
        (|service| &service.halved, is_late),
        (|service| &service.broken, is_broken),
    ] {
        let (wire, service) = (Wire::new(Roots::load()), Service::start().await);
        let calls = (0..5).map(|_| service.ask(&wire));
        let answers = futures::future::join_all(calls).await;
        assert!(answers.iter().all(Result::is_ok) && service.opened() == 5);
        // They are used again.
        assert!(service.ask(&wire).await.is_ok() && service.opened() == 5);
        dead(&service).store(5, Ordering::Relaxed);
        let failed = service.ask(&wire).await.expect_err("it is dead");
        assert!(matches!(failed, WireError::Lost(error) if is_in_vain(&error)));
        for opened in 6..9 {
            assert!(service.ask(&wire).await.is_ok());
            assert_eq!(service.opened(), opened);
        }
    }
}

#[tokio::test]
async fn an_exchange_shares_its_connection_with_nothing() {
    let (wire, service) = (Wire::new(Roots::load()), Service::start().await);
    for opened in [1, 1, 2, 3] {
        let asked = if opened == 1 {
            service.ask(&wire).await
        } else {
            service.ask(&wire.unshared()).await
        };
        assert!(asked.is_ok());
        assert_eq!(service.opened(), opened);
    }
}

#[tokio::test]
async fn a_call_for_which_nobody_waited_to_the_end_counts_if_it_took_long() {
    let (wire, service) = (Wire::new(Roots::load()), Service::start().await);
    service.forgotten.store(2, Ordering::Relaxed);
    for (patience, is_suspect) in [(HANGS / 10, false), (HANGS * 3 / 2, true)] {
        let request = get(&service.url);
        let left = timeout(patience, wire.ask(request, 3 * HANGS, 100)).await;
        assert!(left.is_err());
        assert_eq!(wire.inner.is_suspect("127.0.0.1"), is_suspect);
    }
    assert!(!wire.inner.is_suspect("127.0.0.2"));
}

#[tokio::test]
async fn a_connection_that_cannot_be_opened_says_nothing_of_those_that_are_open() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let socket = TcpSocket::new_v4().expect("a socket");
    let any = "127.0.0.1:0".parse().expect("an address");
    socket.bind(any).expect("a port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("an address");
    // Nobody accepts, until the kernel takes no more.
    let mut taken = Vec::new();
    while let Ok(stream) = timeout(TIME, TcpStream::connect(address)).await {
        taken.push(stream.expect("a connection"));
    }
    let wire = Wire::new(Roots::load());
    let failed = wire.ask(get(&format!("http://{address}")), 3 * HANGS, 100);
    let failed = failed.await.expect_err("there is no connection");
    assert!(matches!(failed, WireError::Lost(error) if error.is_connect()));
    assert!(!wire.inner.is_suspect("127.0.0.1"));
}

#[tokio::test(start_paused = true)]
async fn suspect_hosts_are_forgotten_when_no_connection_to_them_can_be_left_and_are_few() {
    let wire = Wire::new(Roots::load());
    let silence = async |host: String| {
        let call = Call {
            wire: &wire.inner,
            host: host.into(),
            began: Instant::now(),
            hangs: HANGS,
            is_over: false,
        };
        tokio::time::sleep(HANGS).await;
        drop(call);
    };
    silence("a".into()).await;
    tokio::time::sleep(IDLE_TIMEOUT).await;
    assert!(wire.inner.is_suspect("a"));
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(!wire.inner.is_suspect("a"));
    futures::future::join_all((0..1000).map(|number| silence(number.to_string()))).await;
    assert_eq!(wire.inner.suspects.lock().len(), SUSPECTS);
}
