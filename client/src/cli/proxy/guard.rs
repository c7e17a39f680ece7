//! Which requests are passed on: those of programs in this pod, and none that a web page has made a browser send.

use crate::protocol::is_relayed;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;

/// The hosts in requests of this pod's programs; any other name that resolves to loopback is somebody else's.
const OWN_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The header in which a browser says who made it send the request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Headers that are about one connection (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Parses a host that requests may be for. It may have no port: the port of a `Host` is ignored.
pub(super) fn host(text: &str) -> Result<String, String> {
    let authority = text.parse::<Authority>().ok();
    match authority {
        Some(authority) if authority.host() == text => Ok(text.to_owned()),
        _ => Err("write a host without a port, such as secrets.local".to_owned()),
    }
}

/// Decides which requests are passed on.
#[derive(Debug)]
pub(super) struct Guard {
    hosts: Vec<String>,
    required: Option<HeaderName>,
}

impl Guard {
    /// A guard that admits the pod's own hosts and `more`, and only requests with the header that is required, if any.
    pub(super) fn new(more: Vec<String>, required: Option<HeaderName>) -> Self {
        let own = OWN_HOSTS.iter().map(|host| (*host).to_owned());
        let hosts = own.chain(more.into_iter().map(|host| host.to_ascii_lowercase()));
        Self {
            hosts: hosts.collect(),
            required,
        }
    }

    /// Admits the request, or says why not.
    pub(super) fn admit(&self, head: &Parts) -> Result<(), &'static str> {
        if head.uri.authority().is_some() || head.uri.scheme().is_some() {
            return Err(
                "this is no proxy for other hosts: ask for a path, such as /v1/secrets/NAME",
            );
        }
        if !self.is_own(&head.headers) {
            return Err(
                "the proxy answers only the hosts localhost, 127.0.0.1 and [::1], and those of --allow-host",
            );
        }
        for name in head.headers.keys() {
            if is_relayed(name.as_str()) {
                return Err("the request was relayed, or sent by a web page");
            }
        }
        let from_elsewhere = head.headers.get_all(FETCH_SITE).iter().any(|site| {
            // Typed into the address bar, or sent by a page of the same origin. What is no browser sends no such
            // header.
            !matches!(site.as_bytes(), b"none" | b"same-origin")
        });
        if from_elsewhere {
            return Err("a web page of another site made the browser send this");
        }
        match &self.required {
            Some(required) if !head.headers.contains_key(required) => {
                Err("the request lacks the header that --require-header names")
            }
            _ => Ok(()),
        }
    }

    /// Whether the only `Host` is one of the pod's own, whatever its port: a web page whose name has been pointed at
    /// loopback sends that name.
    fn is_own(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return false;
        };
        let Ok(host) = host.as_bytes().try_into() else {
            return false;
        };
        let host: Authority = host;
        !host.as_str().contains('@')
            && self
                .hosts
                .iter()
                .any(|own| host.host().eq_ignore_ascii_case(own))
    }
}

/// Removes the headers that are about a single connection.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.into_iter().chain(HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn admitted(guard: &Guard, target: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        guard.admit(&head).is_ok()
    }

    #[test]
    fn only_the_pods_own_hosts_are_answered() {
        let guard = Guard::new(vec!["Secrets.Test".to_owned()], None);
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "secrets.test",
        ] {
            assert!(admitted(&guard, "/", &[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.2",
            "0.0.0.0",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost/x",
        ] {
            assert!(!admitted(&guard, "/", &[("host", host)]), "{host}");
        }
        assert!(!admitted(&guard, "/", &[]));
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert!(!admitted(&guard, "/", &twice));
        let absolute = "http://localhost/v1/identity";
        assert!(!admitted(&guard, absolute, &[("host", "localhost")]));
    }

    #[test]
    fn what_a_browser_sends_for_a_web_page_is_refused() {
        let guard = Guard::new(Vec::new(), None);
        for (name, value) in [
            ("origin", "http://localhost:8080"),
            ("origin", "null"),
            ("referer", "http://evil.example/"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("via", "1.1 x"),
        ] {
            let headers = [("host", "localhost"), (name, value)];
            assert!(!admitted(&guard, "/", &headers), "{name}: {value}");
        }
        let typed = [("host", "localhost"), ("sec-fetch-site", "none")];
        assert!(admitted(&guard, "/", &typed));
    }

    #[test]
    fn a_header_may_be_required() {
        let guard = Guard::new(Vec::new(), Some(HeaderName::from_static("x-latchkey")));
        assert!(!admitted(&guard, "/", &[("host", "localhost")]));
        assert!(admitted(
            &guard,
            "/",
            &[("host", "localhost"), ("x-latchkey", "1")]
        ));
    }

    #[test]
    fn what_is_about_one_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ] {
            let name: HeaderName = name.parse().expect("a name");
            headers.insert(name, value.parse().expect("a value"));
        }
        remove_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept"]);
    }
}
