//! What was asked of the server.

use super::FakeKube;

/// One request, as the server saw it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// The user by the bearer token; empty when the token is missing or unknown.
    pub user: String,
    /// `get`, `list`, `watch`, `create`; for what is no resource, the method in lower case.
    pub verb: String,
    /// The resource with its subresource, `pods` or `serviceaccounts/token`; for what is no resource, the path.
    pub resource: String,
    /// The namespace; empty for the whole cluster.
    pub namespace: String,
    /// The object's name, if the request names one.
    pub name: String,
    /// The raw query.
    pub query: String,
    /// The answer's code; none while it is being answered, or when it never was.
    pub status: Option<u16>,
}

/// One `TokenRequest` that passed authorization.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenRequested {
    /// The service account's namespace.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The audiences asked for.
    pub audiences: Vec<String>,
    /// The life asked for, in seconds; none if the request left it to the server.
    pub expiration_seconds: Option<i64>,
    /// Name and UID of the pod that the token was to be bound to.
    pub pod: Option<(String, String)>,
    /// The token, if one was given, so that a test can look for it where it must not be.
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
    /// Notes a request; the number it gets is for [`answered`](Self::answered).
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
