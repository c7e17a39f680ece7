//! Words in the agent's texts that a program reads: `latchkey doctor` tells by them what a [`Code`](super::Code) and a
//! [`Step`](super::Step) leave open, and what to type next.
//!
//! The agent writes its texts with them. It and the command are upgraded apart, so each also meets the other's older
//! words: one that changes here is no longer understood.

/// In a refusal to an ephemeral container.
pub const EPHEMERAL_CONTAINER: &str = "ephemeral container";

/// In a refusal for lack of an annotation, as opposed to one that is wrong.
pub const NAMES_NO: &str = "names no";

/// In a refusal for lack of an annotation on the service account, before its key; after the key comes a comma or
/// nothing.
pub const ANNOTATE_WITH: &str = "annotate it with ";

/// In a refusal of a role to a container that the pod's own annotation exempts, or may exempt.
pub const EXEMPTS: &str = "exempts";

/// In a refusal for lack of the right to issue tokens in the pod's namespace.
pub const NAMESPACE_MUST_ALLOW: &str = "the namespace has to allow";

/// Where a cloud says that the cluster's issuer does not answer it.
pub const CANNOT_FETCH_KEYS: &str = "cannot fetch the keys of";

/// Where AWS has no such secret, before the region that was asked.
pub const NO_SUCH_SECRET_IN: &str = "there is no such secret, version or stage in ";

/// At the end of what AWS may lack where it has the secret, before the region that was asked.
pub const NOT_AT_STAGE_IN: &str = "the version is not at that stage, in ";

/// The role of a principal that reads all of a local store.
pub const WHOLE_STORE: &str = "the whole store";

/// In the role of a principal that reads one folder of a local store, before the folder.
pub const FOLDER: &str = "folder ";
