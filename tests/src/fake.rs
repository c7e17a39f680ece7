//! What the fake clouds have in common: a listener that can be closed for a while, bodies that break off, a log of
//! calls, and faults that are in force until a test is done with them.

mod authority;
mod body;
mod fault;
mod faults;
mod gate;
mod listener;
mod locked;
mod log;
mod reply;
mod server;

pub(crate) use authority::Authority;
pub use body::{BrokenOff, ECHOED, ReplyBody};
pub(crate) use body::{echo, whole};
pub(crate) use fault::OTHER;
pub use fault::{Attempt, Behaviour, Fault, Special};
pub use faults::FaultGuard;
pub use gate::Gate;
pub(crate) use listener::Port;
pub use listener::{Forgotten, Listener};
pub(crate) use locked::Locked;
pub(crate) use reply::Reply;
pub use server::Server;
pub(crate) use server::{Asked, Calls};
