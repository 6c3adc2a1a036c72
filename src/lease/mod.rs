//! Who may have which worker, for how long, and what becomes of the worker afterwards. Pure.
//!
//! | module     | decides                                                            |
//! |------------|--------------------------------------------------------------------|
//! | [`id`]     | how a lease is named                                                 |
//! | [`ask`]    | what a job asks for, which workers meet it, and why none does         |
//! | [`choose`] | which of the free workers an ask gets                                |
//! | [`terms`]  | when a lease expires, and what its end does to the worker             |
//! | [`mod@line`] | whose turn it is while nothing is free                               |
//!
//! Does not know where leases are kept or who asks; the state calls these rules inside the transaction
//! that grants.

pub mod ask;
pub mod choose;
pub mod id;
pub mod line;
pub mod terms;

pub use ask::{Ask, Requirement, Selector};
pub use choose::Picker;
pub use id::LeaseId;
pub use line::Line;
pub use terms::{After, Ending, Outcome, Retirement, Usage};
