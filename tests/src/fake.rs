//! What the fake clouds have in common: a listener that can be closed for a while, bodies that break off, a log of
//! calls, and faults that are in force until a test is done with them.

mod authority;
mod body;
mod fault;
mod faults;
mod gate;
mod listener;
mod log;

pub(crate) use authority::Authority;
pub use body::ECHOED;
pub(crate) use body::{BrokenOff, ReplyBody, echo, whole};
pub(crate) use fault::OTHER;
pub use fault::{Attempt, Behaviour, Fault, Special};
pub(crate) use faults::Faults;
pub use faults::{FaultGuard, Matches};
pub use gate::Gate;
pub use listener::Forgotten;
pub(crate) use listener::{Listener, Port};
pub(crate) use log::CallLog;
