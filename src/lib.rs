//! pool
pub mod clock;
pub mod config;
pub mod desired;
pub mod plan;
pub mod state;
pub mod worker;
