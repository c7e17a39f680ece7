//! The requests that the server got.

use super::FakeKube;

/// One request, as the server saw it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// The bearer token's user; empty if the token is missing or unknown.
    pub user: String,
    /// `get`, `list`, `watch`, `create`; for paths that are not resources, the method in lower case.
    pub verb: String,
    /// The resource with its subresource, `pods` or `serviceaccounts/token`; otherwise the path.
    pub resource: String,
    /// The namespace; empty for the whole cluster.
    pub namespace: String,
    /// The object's name, if the request names one.
    pub name: String,
    /// The raw query.
    pub query: String,
    /// The answer's code; `None` until it is answered, or if it never was.
    pub status: Option<u16>,
}

/// One `TokenRequest` that passed authorization.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenRequested {
    /// The service account's namespace.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The requested audiences.
    pub audiences: Vec<String>,
    /// The requested lifetime, in seconds; `None` if the request left it to the server.
    pub expiration_seconds: Option<i64>,
    /// Name and UID of the pod to bind the token to.
    pub pod: Option<(String, String)>,
    /// The token, if one was issued, so that tests can search for it where it must not be.
    pub token: Option<String>,
    /// The answer's code.
    pub status: u16,
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    requests: Vec<Request>,
    pub(super) tokens: Vec<TokenRequested>,
}

impl Journal {
    /// Records a request; its number is for [`answered`](Self::answered).
    pub(super) fn asked(&mut self, request: Request) -> usize {
        self.requests.push(request);
        self.requests.len() - 1
    }

    pub(super) fn answered(&mut self, number: usize, status: u16) {
        if let Some(request) = self.requests.get_mut(number) {
            request.status = Some(status);
        }
    }
}

impl FakeKube {
    /// All requests so far, in order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.cluster.lock().journal.requests.clone()
    }

    /// How many requests there were with this verb on this resource (`serviceaccounts/token` is one).
    #[must_use]
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        let state = self.cluster.lock();
        let requests = state.journal.requests.iter();
        requests
            .filter(|request| request.verb == verb && request.resource == resource)
            .count()
    }

    /// All token requests that passed authorization, in order.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenRequested> {
        self.cluster.lock().journal.tokens.clone()
    }

    /// Waits until there were `number` requests with this verb on this resource.
    pub async fn until_requested(&self, verb: &str, resource: &str, number: usize) {
        self.until(|kube| kube.count(verb, resource) >= number)
            .await;
    }
}
