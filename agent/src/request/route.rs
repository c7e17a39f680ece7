//! The routes of the workload socket.

/// A route of the workload socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    Batch,
    Compatible,
    Health,
    Identity,
    List,
    Other,
    Ready,
    Secret,
    Wait,
}

// === impl Route ===

impl Route {
    /// All routes.
    pub(crate) const ALL: [Self; 9] = [
        Self::Batch,
        Self::Compatible,
        Self::Health,
        Self::Identity,
        Self::List,
        Self::Other,
        Self::Ready,
        Self::Secret,
        Self::Wait,
    ];

    /// Whether it answers any peer, attested or not.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Ready)
    }

    /// Its name in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Compatible => "compatible",
            Self::Health => "health",
            Self::Identity => "identity",
            Self::List => "list",
            Self::Other => "other",
            Self::Ready => "ready",
            Self::Secret => "secret",
            Self::Wait => "wait",
        }
    }

    /// The methods that it allows, as `Allow` lists them.
    pub(crate) const fn allowed(self) -> &'static str {
        match self {
            Self::Batch => "POST",
            _ => "GET, HEAD",
        }
    }

    /// The message to a caller that used another method.
    pub(super) const fn hint(self) -> &'static str {
        match self {
            Self::Batch => "this route is asked with POST",
            Self::Secret | Self::List => "the agent only reads: use GET or HEAD",
            _ => "this route is asked with GET or HEAD",
        }
    }
}
