//! Workers that are containers of a Docker engine, or of podman's service, which speaks the same API.
//!
//! A worker is one container. Its name decides between two creates of one attempt, its labels say whose it
//! is, and both are in the create call itself. What an engine cannot change in place is a replacement. A
//! reset makes a new container under the old one's name.
//!
//! | module     | holds                                                              |
//! |------------|--------------------------------------------------------------------|
//! | `config`   | what a pool file says of an engine and of a container                |
//! | `engine`   | the connection, and what an engine's refusals mean                    |
//! | `labels`   | identity to labels and back                                          |
//! | `look`     | listings and single containers                                        |
//! | `body`     | a worker's spec as the engine takes it                                |
//! | `images`   | pulling, with credentials where `docker login` leaves them            |
//! | `events`   | one stream of events for all workers of a deployment                  |
//! | `health`   | what an engine knows of a container's health                          |
//! | `seen`     | what a container is as a worker                                       |
//! | `provider` | the provider trait over these                                        |
//!
//! Builds no image, makes no network or volume, and restarts nothing.

mod body;
mod config;
mod engine;
mod events;
mod health;
mod images;
mod labels;
mod look;
mod provider;
mod seen;

pub use config::{
    Config, DEFAULT_HOST, Pull, WorkerAttributes, meeting_ports, names_host_port, wrong_port,
};
pub use provider::{DockerProvider, Settings};
