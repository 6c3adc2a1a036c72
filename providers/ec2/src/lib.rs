//! Workers that are instances of Amazon EC2, or of what speaks its query API.
//!
//! A worker is one instance. Its tags say whose it is and are part of the call that creates it. Each attempt to create
//! one is made in one place (a type of instance in a subnet) under a client token of its own, so that a token never
//! comes with two sets of parameters; what has no room sends the next attempt to the next place.
//!
//! | module     | holds                                                                  |
//! |------------|------------------------------------------------------------------------|
//! | `config`   | what a pool file says of an account's region and of an instance            |
//! | `sizes`    | types of instances by cores and memory                                   |
//! | `tags`     | identity, labels and tags as an instance's tags, and back                |
//! | `request`  | what `RunInstances` is asked for                                          |
//! | `sign`     | Signature Version 4                                                      |
//! | `access`   | credentials, from where AWS's own tools take them                         |
//! | `whose`    | whose account they are of                                                 |
//! | `joint`    | a task that many wait for                                                 |
//! | `wire`     | how those are called for                                                  |
//! | `client`   | one signed call                                                          |
//! | `pace`     | how fast calls are made once there were too many                          |
//! | `answer`   | what the API answers, as types                                            |
//! | `refusal`  | what the API's error codes mean                                           |
//! | `status`   | health, asked for many instances at once                                  |
//! | `looks`    | looking again for what may not show yet                                    |
//! | `seen`     | what an instance is as a worker                                           |
//! | `provider` | the provider trait over these                                             |
//!
//! Makes no network, image or key, starts nothing that was stopped, and asks no price.

mod access;
mod answer;
mod client;
mod config;
mod joint;
mod looks;
mod pace;
mod provider;
mod refusal;
mod request;
mod seen;
mod sign;
mod sizes;
mod status;
mod tags;
mod whose;
mod wire;

pub use config::{
    Address, Config, MOST_USER_DATA, Market, MetadataTokens, WorkerAttributes, is_image,
};
pub use provider::{Ec2Provider, Settings};
pub use sign::{Signed, signature};
pub use sizes::{fitting, size_of};
pub use tags::wrong_tags;
